"""The interface of language backbones.

N: prompts. T: tokens of the longest prompt. D: width of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.structures import TextFeatures, TokenBatch


class LanguageBackbone(CheckpointPrefixes, ABC):
    """Encodes tokenized prompts into one feature vector per token.

    Attributes:
        width: D.
        vocab_size: number of token ids that have an embedding.
        export_unit: what an exported graph of the encoder encodes: "prompt" or "phrase"; "": it
            cannot be exported.
        phrase_parser: of the unit "phrase", the module whose function ``core_phrase`` maps a phrase
            to another one that is embedded, too. It imports the standard library only. "": none.
        encodes_nouns: of a question, the nouns (``Prompt.nouns``) are encoded separately. Where it
            is False, prompts need no nouns.
    """

    width: int
    vocab_size: int
    encodes_nouns: ClassVar[bool] = False
    export_unit: ClassVar[str] = ""
    phrase_parser: ClassVar[str] = ""

    @abstractmethod
    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """Encode (N, T) tokens into (N, T, D) features; padding has undefined features.

        With ``tokens.causal`` a token attends only to itself and to the tokens before it.
        """

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(vocab_size, D) input embeddings, for prediction heads that tie their weights to them.

        Raises:
            NotImplementedError: the backbone has no such table.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no word_embeddings to share: do not tie a decoder to it"
        )

    def decode_step(
        self, input_ids: Tensor, cache: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        """Encode further tokens of R texts causally; image captioning calls it token by token.

        Args:
            input_ids: (R, T) int64, the tokens after those of the cache.
            cache: keys and values of the tokens before, per layer; None at the beginning.

        Returns:
            (R, T, D) features, and the cache with these tokens appended.

        Raises:
            NotImplementedError: the backbone only encodes whole prompts.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no decode_step, which generating captions needs: choose "
            "another language backbone, or do not build a caption head"
        )
