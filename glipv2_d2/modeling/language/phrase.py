"""A sentence encoder as language backbone: every phrase of a prompt is encoded separately.

N: prompts. T: tokens of the longest prompt. P: labels of all prompts. D: width of the features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertModel

from glipv2_d2.config import configurable
from glipv2_d2.layers.tracing import constants_of_export, is_exporting
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds, weights_version
from glipv2_d2.structures import Prompt, TextFeatures, TokenBatch

# 8192 embeddings of MiniLM take 12 MiB.
_CACHED_PHRASES = 8192
# Bounds the memory that the first prompt of a long list of class names needs.
_PHRASES_PER_BATCH = 256


@LANGUAGE_BACKBONE_REGISTRY.register()
class PhraseLanguageBackbone(BertLanguageBackbone):
    """Encodes each phrase of a prompt separately and assigns its embedding to all of its tokens.

    Not part of GLIP. A sentence encoder such as MiniLM is trained to embed single phrases, and new
    class names stay close to their synonyms. The features of a phrase depend neither on the other
    phrases of the prompt nor on their order. With a frozen encoder each phrase is therefore encoded
    once and cached, in training, too.

    A phrase's embedding is the mean over its tokens including [CLS] and [SEP] (the pooling of
    sentence-transformers), scaled to length sqrt(D), about the scale of a layer norm's output. A
    token of several labels gets the mean of their embeddings.

    - Class names: separators have zero features.
    - Captions: the labels are encoded separately; the other words get their hidden states from one
      pass over the whole caption, scaled in the same way.
    - Questions: the nouns are encoded separately and everything else in context, so the features do
      not depend on the labels.
    - Causal prompts are encoded as a whole.

    A masked word is masked within its phrase as well.
    """

    encodes_nouns: ClassVar[bool] = True
    export_unit: ClassVar[str] = "phrase"

    @configurable
    def __init__(
        self, *, bert: BertModel, freeze: bool, checkpoint_excluded: Sequence[str] = ()
    ) -> None:
        super().__init__(bert=bert, freeze=freeze, checkpoint_excluded=checkpoint_excluded)
        self._phrase_cache = PhraseCache(_CACHED_PHRASES)

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """Encode (N, T) tokens into (N, T, D) float32 features."""
        if tokens.causal:
            return super().forward(tokens)
        hidden, is_phrase = self._phrase_features(tokens)
        needs_context = [
            row
            for row, prompt in enumerate(tokens.prompts)
            if prompt.is_question or has_words_outside_labels(prompt)
        ]
        if needs_context:
            rows = torch.tensor(needs_context, device=hidden.device)
            context = _unit_variance(self.encode(tokens.input_ids[rows], tokens.mask[rows]))
            context = context.to(hidden.dtype)
            hidden = hidden.index_copy(
                0, rows, torch.where(is_phrase[rows, :, None], hidden[rows], context)
            )
        return TextFeatures(hidden, tokens.mask)

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        hidden, new_cache = super().decode_step(input_ids, cache)
        return _unit_variance(hidden.float()), new_cache

    def _phrase_features(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """Phrase embeddings at their tokens, else zeros (N, T, D), and a mask of these (N, T)."""
        device = tokens.input_ids.device
        num_prompts, num_tokens = tokens.input_ids.shape
        with constants_of_export():
            phrases, phrase_index, token_index = _collect_phrases(tokens.to("cpu"))
            phrase_index, token_index = phrase_index.to(device), token_index.to(device)
            phrases_per_token = token_index.bincount(minlength=num_prompts * num_tokens)
            special_ids = _special_ids(tokens)
        hidden = torch.zeros(num_prompts * num_tokens, self.width, device=device)
        if phrases:
            embeddings = self.embed_phrases(phrases, special_ids=special_ids).float()
            hidden = hidden.index_add(0, token_index, embeddings[phrase_index])
            hidden = hidden / phrases_per_token.clamp(min=1)[:, None]
        return (
            hidden.view(num_prompts, num_tokens, self.width),
            phrases_per_token.view(num_prompts, num_tokens) > 0,
        )

    def embed_phrases(
        self, phrases: Sequence[PhraseIds], *, special_ids: tuple[int, int]
    ) -> Tensor:
        """Embed P phrases into (P, D), each of length sqrt(D).

        Args:
            phrases: P sequences of token ids; () is the empty string.
            special_ids: the ids of [CLS] and [SEP].
        """

        def encode(different: Sequence[PhraseIds]) -> Tensor:
            parts = [
                self._embed_batch(different[start : start + _PHRASES_PER_BATCH], special_ids)
                for start in range(0, len(different), _PHRASES_PER_BATCH)
            ]
            return torch.cat(parts)

        # Weights have no values in an export, which keeps the encoder in the graph.
        if self.freeze and not is_exporting():
            # In full precision, so that cached embeddings do not depend on the first caller.
            with torch.autocast(self.bert.device.type, enabled=False):
                version = weights_version(self.bert)
                return self._phrase_cache(phrases, encode, version, self.bert.device)
        different = list(dict.fromkeys(phrases))
        row_of = {phrase: row for row, phrase in enumerate(different)}
        return encode(different)[[row_of[phrase] for phrase in phrases]]

    def _embed_batch(self, phrases: Sequence[PhraseIds], special_ids: tuple[int, int]) -> Tensor:
        cls, sep = special_ids
        device = self.bert.device
        with constants_of_export():
            rows = [torch.tensor([cls, *phrase, sep]) for phrase in phrases]
            input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
            input_ids, mask = input_ids.to(device), mask.to(device)
        hidden = self.encode(input_ids, mask) * mask[..., None]
        return _unit_variance(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def has_words_outside_labels(prompt: Prompt) -> bool:
    """Whether the prompt has a letter or digit outside the spans of its labels.

    >>> has_words_outside_labels(Prompt("cat. dog", (((0, 3),), ((5, 8),)), (0, 1)))
    False
    >>> has_words_outside_labels(Prompt("a cat", (((2, 5),),), (0,)))
    True
    """
    end_of_last = 0
    outside = []
    for start, end in sorted(itertools.chain.from_iterable(prompt.spans)):
        outside.append(prompt.text[end_of_last:start])
        end_of_last = max(end_of_last, end)
    outside.append(prompt.text[end_of_last:])
    return any(character.isalnum() for character in "".join(outside))


def _collect_phrases(tokens: TokenBatch) -> tuple[list[PhraseIds], Tensor, Tensor]:
    """Collect the token ids of every label or, of questions, every noun, and their positions.

    Returns:
        the P phrases of all prompts; and, for each pair of a phrase and one of its tokens, the
        index of the phrase and the index of the token among the N * T of the batch.
    """
    num_tokens = tokens.input_ids.shape[1]
    phrases: list[PhraseIds] = []
    phrase_index, token_index = [], []
    for row, (input_ids, prompt) in enumerate(zip(tokens.input_ids, tokens.prompts, strict=True)):
        maps = tokens.noun_maps if prompt.is_question else tokens.positive_maps
        prompt_phrases, positions = maps[row].nonzero(as_tuple=True)
        phrase_index.append(prompt_phrases + len(phrases))
        token_index.append(positions + row * num_tokens)
        ids = iter(input_ids[positions].tolist())
        lengths = maps[row].sum(dim=1).tolist()
        phrases += [tuple(itertools.islice(ids, length)) for length in lengths]
    return phrases, torch.cat(phrase_index), torch.cat(token_index)


def _special_ids(tokens: TokenBatch) -> tuple[int, int]:
    """The ids of [CLS] and [SEP]: the first and the last token of any prompt."""
    last = int(tokens.mask[0].sum()) - 1
    return int(tokens.input_ids[0, 0]), int(tokens.input_ids[0, last])


def _unit_variance(vectors: Tensor) -> Tensor:
    """Scale (..., D) vectors to length sqrt(D), so that their squared entries average 1."""
    return F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])
