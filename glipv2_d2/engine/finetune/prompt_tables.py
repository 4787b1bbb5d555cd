"""Language backbones with trained vectors that are added to the text features (prompt tuning).

N: prompts. T: tokens of the longest prompt. D: width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.messages import quote
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.structures import TextFeatures, TokenBatch
from glipv2_d2.text.names import clean_name, normalized_name


class PromptedLanguageBackbone(LanguageBackbone):
    """A language backbone that adds a trained vector to the features of each token position.

    Initialised to zeros, as in the released code's language_prompt_v2 (glip_reference.md 17). The
    vectors belong to positions of one prompt: train and predict with the same class names in the
    same order.
    """

    def __init__(self, *, inner: LanguageBackbone, num_rows: int) -> None:
        """
        Args:
            inner: the language backbone.
            num_rows: token positions with a vector; later positions get none.
        """
        super().__init__()
        self.inner = inner
        self.width = inner.width
        self.vocab_size = inner.vocab_size
        self.table = nn.Parameter(torch.zeros(num_rows, inner.width))

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) features."""
        text = self.inner(tokens)
        return replace(text, hidden=text.hidden + self._rows(0, text.hidden.shape[1]))

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.inner.word_embeddings

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        start = cache[0].num_tokens if cache else 0
        hidden, cache = self.inner.decode_step(input_ids, cache)
        return hidden + self._rows(start, hidden.shape[1]), cache

    def _rows(self, start: int, num_tokens: int) -> Tensor:
        """Rows of the table from position ``start``, zero-padded: (num_tokens, D)."""
        rows = self.table[start : start + num_tokens]
        return F.pad(rows, (0, 0, 0, num_tokens - len(rows)))


class ClassPromptedLanguageBackbone(LanguageBackbone):
    """A language backbone that adds trained vectors to the tokens of known class names.

    The vectors belong to a name, wherever it stands: names may be in any order, in several prompts
    (chunks), and beside names without vectors. Captions, questions and phrases are encoded as
    without the table. Our choice: GLIP's table belongs to positions.
    """

    def __init__(
        self, *, inner: LanguageBackbone, class_names: Sequence[str], tokens_per_name: int
    ) -> None:
        """
        Args:
            inner: the language backbone.
            class_names: those with vectors.
            tokens_per_name: K, tokens of a name with a vector; later ones get none.
        """
        super().__init__()
        self.inner = inner
        self.width = inner.width
        self.vocab_size = inner.vocab_size
        self.tokens_per_name = tokens_per_name
        keys = dict.fromkeys(_key(name) for name in class_names)
        self.row_of = {key: row for row, key in enumerate(keys)}
        self.table = nn.Parameter(torch.zeros(len(keys), tokens_per_name, inner.width))

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) features.

        Raises:
            ValueError: in training, a class name has no vectors.
        """
        text = self.inner(tokens)
        places = [
            (i, position, row, k)
            for i, prompt in enumerate(tokens.prompts)
            if prompt.is_class_list
            for label, row in enumerate(self._rows(prompt.phrases))
            if row is not None
            for k, position in enumerate(self._positions(tokens.positive_maps[i][label]))
        ]
        device = text.hidden.device
        prompts, positions, rows, ks = torch.tensor(places, device=device).view(-1, 4).long().T
        added = torch.zeros_like(text.hidden).index_put(
            (prompts, positions), self.table[rows, ks].to(text.hidden.dtype), accumulate=True
        )
        return replace(text, hidden=text.hidden + added)

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.inner.word_embeddings

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        return self.inner.decode_step(input_ids, cache)

    def _positions(self, positive_map: Tensor) -> list[int]:
        """The first K tokens of a label."""
        positions: list[int] = positive_map.nonzero().flatten()[: self.tokens_per_name].tolist()
        return positions

    def _rows(self, names: Sequence[str]) -> list[int | None]:
        rows = [self.row_of.get(_key(name)) for name in names]
        if self.training and None in rows:
            name = names[rows.index(None)]
            raise ValueError(
                f"the class name {quote(name)} has no vectors to train: add it to "
                "MODEL.TUNING.PROMPT.CLASS_NAMES, or leave the list empty for the names of "
                "DATASETS.TRAIN"
            )
        return rows


def _key(name: str) -> str:
    return normalized_name(clean_name(name))
