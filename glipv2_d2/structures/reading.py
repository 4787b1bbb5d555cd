"""What comes of images and prompts that have read each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glipv2_d2.structures.language import LanguageFeatures, TokenBatch


@dataclass(frozen=True)
class Reading:
    """N images and a prompt for each, after fusion.

    Attributes:
        features: per level (N, C, H_i, W_i), fused.
        words: (N, T, D), what regions are scored against.
        tokens: the prompts.
    """

    features: dict[str, Tensor]
    words: LanguageFeatures
    tokens: TokenBatch

    @property
    def fused(self) -> tuple[dict[str, Tensor], LanguageFeatures, TokenBatch]:
        """The three, in the order in which heads take them."""
        return self.features, self.words, self.tokens
