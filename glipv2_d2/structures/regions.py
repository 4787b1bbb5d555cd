"""The things of images that words may be about, before anybody has named them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """R regions of each of N images, the likeliest things first.

    An image in which fewer were found has rows of zeros behind them.

    Attributes:
        features: (N, R, C), cut out of the maps before fusion.
        fused_features: (N, R, C), of the location that found each in the maps that were asked for
            any thing.
        places: (N, R, 5): x and y of the centre, width and height, in shares of the image
            without padding, and the score as a thing, 0..1.
        name_logits: (N, R, A), how well each matches A names; None: it was compared with none.
    """

    features: Tensor
    fused_features: Tensor
    places: Tensor
    name_logits: Tensor | None = None

    @property
    def is_found(self) -> Tensor:
        """(N, R) bool, False in the rows of zeros."""
        return self.places[..., 4] > 0

    def images(self, indices: Sequence[int]) -> Regions:
        """Those of some of the images, any of them several times."""
        rows = list(indices)
        return Regions(
            self.features[rows],
            self.fused_features[rows],
            self.places[rows],
            None if self.name_logits is None else self.name_logits[rows],
        )
