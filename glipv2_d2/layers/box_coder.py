"""Boxes with inclusive corners, and boxes as deltas to anchors.

K: number of boxes. Boxes are XYXY in pixels. *Inclusive* corners are the first and the last pixel
of a box, so width = x2 - x1 + 1 (GLIP's convention, inherited from the first Detectron);
*exclusive* corners are Detectron2's, width = x2 - x1. All code that computes with inclusive corners
uses the functions of this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A box can grow at most from 16 to 1000 pixels, which also keeps exp() finite (as in GLIP).
_MAX_LOG_RATIO = math.log(1000.0 / 16)


def to_inclusive(boxes: Tensor) -> Tensor:
    """Convert Detectron2's corners to inclusive ones, (..., 4). Inverse of :func:`to_exclusive`.

    >>> to_inclusive(torch.tensor([0, 0, 10, 5])).tolist()
    [0, 0, 9, 4]
    """
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def to_exclusive(boxes: Tensor) -> Tensor:
    """Convert inclusive corners to Detectron2's, (..., 4). Inverse of :func:`to_inclusive`.

    >>> to_exclusive(torch.tensor([0, 0, 9, 4])).tolist()
    [0, 0, 10, 5]
    """
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def box_centers(boxes: Tensor) -> Tensor:
    """Midpoint of the inclusive corners, (..., 4) -> (..., 2) as (x, y), in pixels.

    The mean of the coordinates of both corner pixels. Exclusive corners would add half a pixel.
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_sizes(boxes: Tensor) -> Tensor:
    """Width and height of boxes with inclusive corners, (..., 4) -> (..., 2), in pixels."""
    return boxes[..., 2:] - boxes[..., :2] + 1


def box_area(boxes: Tensor) -> Tensor:
    """Area of boxes with inclusive corners, (..., 4) -> (...), in pixels.

    >>> box_area(torch.tensor([3, 3, 3, 3])).item()
    1
    """
    return box_sizes(boxes).prod(dim=-1)


def pairwise_iou_inclusive(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of boxes with inclusive corners.

    Args:
        boxes1: (K1, 4).
        boxes2: (K2, 4).

    Returns:
        (K1, K2), 0..1.
    """
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    intersection = (bottom_right - top_left + 1).clamp(min=0).prod(dim=-1)
    return intersection / (box_area(boxes1)[:, None] + box_area(boxes2) - intersection)


@dataclass(frozen=True)
class BoxCoder:
    """Converts boxes with inclusive corners to deltas (dx, dy, dw, dh) to anchors, and back.

    ``decode(encode(boxes, anchors), anchors)`` returns the boxes unless one is more than 62.5 times
    as wide or high as its anchor.

    Detectron2's ``Box2BoxTransform`` does the same for exclusive corners; with inclusive ones its
    sizes are one pixel too small.

    Attributes:
        weights: factors of dx, dy, dw, dh, which scale regression targets to about unit variance.
    """

    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    def encode(self, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """Compute the deltas from anchors to boxes.

        Args:
            gt_boxes: (..., 4), inclusive corners.
            anchors: (..., 4), inclusive corners.

        Returns:
            (..., 4).
        """
        anchor_sizes = box_sizes(anchors)
        shift = (box_centers(gt_boxes) - box_centers(anchors)) / anchor_sizes
        growth = torch.log(box_sizes(gt_boxes) / anchor_sizes)
        return torch.cat([shift, growth], dim=-1) * shift.new_tensor(self.weights)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Apply deltas to anchors.

        Args:
            deltas: (..., 4).
            anchors: (..., 4), inclusive corners; broadcast against ``deltas``.

        Returns:
            (..., 4), inclusive corners; not clipped to any image.
        """
        shift, growth = (deltas / deltas.new_tensor(self.weights)).split(2, dim=-1)
        anchor_sizes = box_sizes(anchors)
        centers = shift * anchor_sizes + box_centers(anchors)
        half_extents = (growth.clamp(max=_MAX_LOG_RATIO).exp() * anchor_sizes - 1) / 2
        return torch.cat([centers - half_extents, centers + half_extents], dim=-1)
