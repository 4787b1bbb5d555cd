"""Class-agnostic regions of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """R regions of each of N images, best first; rows of zeros fill up images with fewer.

    Attributes:
        features: (N, R, C), pooled from the pyramid before fusion.
        fused_features: (N, R, C), at the location that detected each region, fused with the
            class-agnostic prompt.
        boxes: (N, R, 5): x and y of the centre, width and height, relative to the image without
            padding, and the objectness score, 0..1.
        class_logits: (N, R, A), scores against A class names; None: without class names.
    """

    features: Tensor
    fused_features: Tensor
    boxes: Tensor
    class_logits: Tensor | None = None

    @property
    def is_valid(self) -> Tensor:
        """(N, R) bool, False on rows of zeros."""
        return self.boxes[..., 4] > 0

    def rows(self, indices: Sequence[int]) -> Regions:
        """The regions of some of the images, possibly repeated."""
        rows = list(indices)
        return Regions(
            self.features[rows],
            self.fused_features[rows],
            self.boxes[rows],
            None if self.class_logits is None else self.class_logits[rows],
        )
