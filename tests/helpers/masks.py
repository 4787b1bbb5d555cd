"""Inputs with masks, and detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, PolygonMasks
from helpers.models import tiny_model, training_input
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.postprocess import DetectionsPerImage

# A mask head of a few thousand parameters.
MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", 1),
)

# In a 64 x 64 image: triangles that fill half of their boxes.
LOWER_LEFT = [8.0, 8.0, 36.0, 36.0, 8.0, 36.0]
UPPER_RIGHT = [24.0, 16.0, 52.0, 16.0, 52.0, 44.0]
# Its corners are on a grid of 28 x 28 in its box.
ELL = [4.0, 8.0, 18.0, 8.0, 18.0, 22.0, 32.0, 22.0, 32.0, 36.0, 4.0, 36.0]


def box_of(polygon: Sequence[float]) -> list[float]:
    """XYXY."""
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs), max(ys)]


def masked_input(
    polygons: Sequence[Sequence[float]],
    gt_classes: list[int],
    *,
    has_mask: Sequence[bool] | None = None,
    as_bitmasks: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """A training input of polygons and their boxes."""
    x = training_input([box_of(polygon) for polygon in polygons], gt_classes, **fields)
    masks = PolygonMasks([[torch.tensor(polygon).numpy()] for polygon in polygons])
    if as_bitmasks:
        masks = BitMasks.from_polygon_masks(masks, 64, 64)
    x["instances"].gt_masks = masks
    if has_mask is not None:
        x["instances"].gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
    return x


def masked_model(*opts: Any) -> GLIPv2:
    """The tiny model with masks, in evaluation mode."""
    return tiny_model(*MASKS, *opts)


def found(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> DetectionsPerImage:
    """Detections with inclusive corners, all of score 0.9."""
    return DetectionsPerImage(
        torch.tensor(boxes).reshape(-1, 4),
        torch.full((len(labels),), 0.9),
        torch.tensor(labels, dtype=torch.int64),
        torch.arange(len(labels)),
    )


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """(K,) of pairs of bool masks (K, H, W)."""
    intersection = (masks & others).flatten(1).sum(dim=1)
    return intersection / (masks | others).flatten(1).sum(dim=1)
