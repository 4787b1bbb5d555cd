"""Class-agnostic regions of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision

# Of its area, from which a box lies in another one.
PART_SHARE = 0.8


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


def is_part(boxes: Tensor, scores: Tensor) -> Tensor:
    """(N, R) bool: whether :data:`PART_SHARE` of a box lies in one with a higher score.

    Args:
        boxes: (N, R, 5), see :class:`Regions`.
        scores: (N, R).

    >>> boxes = torch.tensor([[[0.5, 0.5, 0.8, 0.8, 1], [0.5, 0.5, 0.2, 0.2, 1]]])
    >>> is_part(boxes, torch.tensor([[2.0, 1.0]])).tolist()
    [[False, True]]
    """
    center, size = full_precision(boxes[..., :2]), full_precision(boxes[..., 2:4])
    low, high = center - size / 2, center + size / 2
    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(
        low[:, :, None], low[:, None]
    )
    covered = overlap.clamp(min=0).prod(dim=-1) / size.prod(dim=-1).clamp(min=1e-6)[:, :, None]
    is_better = scores[:, :, None] < scores[:, None]
    return ((covered >= PART_SHARE) & is_better).any(dim=2)
