"""What comes of images and prompts that have read each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from glipv2_d2.structures.regions import Regions
from glipv2_d2.structures.text import TextFeatures, TokenBatch


@dataclass(frozen=True)
class Reading:
    """N images and a prompt for each, after fusion.

    Attributes:
        features: per level (N, C, H_i, W_i), fused; empty where only the words are asked for. Then
            there may be several texts of an image.
        language: (N, T, D), fused.
        words: (N, T, D), what regions are scored against: fused or not.
        tokens: the prompts.
    """

    features: dict[str, Tensor]
    language: TextFeatures
    words: TextFeatures
    tokens: TokenBatch

    @property
    def fused(self) -> tuple[dict[str, Tensor], TextFeatures, TokenBatch]:
        """Features, words and tokens, in the order in which heads take them."""
        return self.features, self.words, self.tokens

    def rows(self, indices: Sequence[int]) -> Reading:
        """Some of the images with their prompts; a prompt's padding stays."""
        return Reading(
            {name: level[list(indices)] for name, level in self.features.items()},
            self.language.rows(indices),
            self.words.rows(indices),
            self.tokens.rows(indices),
        )


@dataclass(frozen=True)
class ReadQuestions:
    """Q questions that have read their images.

    Attributes:
        language: (Q, T, D), after fusion and after the regions, where there are any.
        regions: of each question's image; None: the model finds none.
        matches: (Q, R, T), logits of regions and words; None as well.
    """

    language: TextFeatures
    regions: Regions | None = None
    matches: Tensor | None = None

    def rows(self, indices: Sequence[int]) -> ReadQuestions:
        """Some of the questions; their padding stays."""
        rows = list(indices)
        return ReadQuestions(
            self.language.rows(rows),
            None if self.regions is None else self.regions.images(rows),
            None if self.matches is None else self.matches[rows],
        )
