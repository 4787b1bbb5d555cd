"""Features of images and queries, before and after fusion.

N: input dicts. R: different images among them. Q: queries. C: channels. T: tokens. D: width of the
text features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from glipv2_d2.structures.query import Query
from glipv2_d2.structures.text import TextFeatures, TokenBatch


@dataclass(frozen=True)
class ImageFeatures:
    """Feature pyramids of a batch. An image that several inputs share is encoded once.

    Attributes:
        levels: name -> (R, C, H_i, W_i), finest level first.
        image_sizes: R x (height, width) of the network input without padding.
        rows: for each of the N inputs, the row of its image.
    """

    levels: dict[str, Tensor]
    image_sizes: list[tuple[int, int]]
    rows: list[int]

    def rows_of(self, queries: Sequence[Query]) -> list[int]:
        """The row of each query's image."""
        return [self.rows[query.image] for query in queries]

    def select(self, queries: Sequence[Query]) -> ImageFeatures:
        """One pyramid per query, that of its image; without a copy where these are the same."""
        rows = self.rows_of(queries)
        sizes = [self.image_sizes[row] for row in rows]
        levels = self.levels
        if rows != list(range(len(self.image_sizes))):
            levels = {name: level[rows] for name, level in levels.items()}
        return ImageFeatures(levels, sizes, list(range(len(rows))))

    def used_by(self, queries: Sequence[Query]) -> ImageFeatures:
        """The images of the queries, once each; its ``rows`` has the row of each query's image."""
        rows = self.rows_of(queries)
        used = sorted(set(rows))
        levels = self.levels
        if used != list(range(len(self.image_sizes))):
            levels = {name: level[used] for name, level in levels.items()}
        sizes = [self.image_sizes[row] for row in used]
        return ImageFeatures(levels, sizes, [used.index(row) for row in rows])


@dataclass(frozen=True)
class FusedText:
    """Text features of Q queries that have attended to their images.

    Attributes:
        queries: the queries.
        tokens: their tokens.
        text: (Q, T, D), before fusion.
        fused_text: (Q, T, D), after fusion.
        region_text: what regions are scored against: one of the two.
    """

    queries: tuple[Query, ...]
    tokens: TokenBatch
    text: TextFeatures
    fused_text: TextFeatures
    region_text: TextFeatures

    def select_text(self, indices: Sequence[int]) -> FusedText:
        """The text of some of the queries, with its padding."""
        return FusedText(
            tuple(self.queries[i] for i in indices),
            self.tokens.rows(indices),
            self.text.rows(indices),
            self.fused_text.rows(indices),
            self.region_text.rows(indices),
        )


@dataclass(frozen=True)
class FusedFeatures(FusedText):
    """Image and text features of Q queries.

    Attributes:
        image_sizes: Q x (height, width) of the network input without padding.
        features: name -> (Q, C, H_i, W_i), before fusion.
        fused_features: the same, after fusion.
    """

    image_sizes: list[tuple[int, int]]
    features: dict[str, Tensor]
    fused_features: dict[str, Tensor]
