"""Rasterise boxes and segmentations, and compute IoU metrics of the masks.

Masks are (H, W). A pixel belongs to a box if its centre does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from glipv2_d2.evaluation.phrase_evaluator import PERCENT

IntersectionUnion = tuple[int, int]
"""Areas in pixels of the intersection and of the union of two masks."""

PRECISION_AT = (0.5, 0.7, 0.9)


def union_of_segmentations(
    segmentations: Sequence[Any], image_size: tuple[int, int]
) -> np.ndarray | None:
    """(H, W) bool, the union of the masks; None if no object has one.

    An object without a mask, such as one whose polygons have two points, adds no pixel.

    Args:
        segmentations: per object polygons or an RLE in COCO's format, or None.
    """
    segmentations = [s for s in segmentations if s is not None]
    if not segmentations:
        return None
    union = np.zeros(image_size, dtype=bool)
    for segmentation in segmentations:
        rle = segmentation
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *image_size))
        union |= coco_mask.decode(rle).astype(bool)
    return union


def union_of_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the union of boxes (K, 4) XYXY.

    >>> union_of_boxes(np.array([[0.6, 0.0, 2.4, 1.0]]), (1, 4)).tolist()
    [[False, True, False, False]]
    """
    union = np.zeros(image_size, dtype=bool)
    # The first pixel whose centre is at or after an edge. Slices clip to the image.
    for x1, y1, x2, y2 in np.ceil(boxes - 0.5).clip(min=0).astype(int).tolist():
        union[y1:y2, x1:x2] = True
    return union


def intersection_union(a: np.ndarray, b: np.ndarray) -> IntersectionUnion:
    """Areas of the intersection and union of two masks of the same shape.

    >>> intersection_union(np.array([True, True, False]), np.array([False, True, True]))
    (1, 3)
    """
    return int((a & b).sum()), int((a | b).sum())


def iou_metrics(areas: Sequence[IntersectionUnion], overall_name: str) -> dict[str, float]:
    """Mean IoU, overall IoU and precisions in percent; nan without phrases.

    The overall IoU is the sum of the intersections divided by the sum of the unions, so large
    objects count more. P@0.5 is the fraction of phrases with an IoU of at least 0.5. Two empty
    masks have IoU 0.

    Args:
        areas: one pair per phrase.
        overall_name: key of the overall IoU, which differs between datasets.

    >>> iou_metrics([(1, 2), (0, 6)], "oIoU")
    {'mIoU': 25.0, 'oIoU': 12.5, 'P@0.5': 50.0, 'P@0.7': 0.0, 'P@0.9': 0.0}
    """
    names = ("mIoU", overall_name, *(f"P@{limit}" for limit in PRECISION_AT))
    if not areas:
        return dict.fromkeys(names, float("nan"))
    intersections, unions = np.array(areas, dtype=np.float64).T
    ious = intersections / unions.clip(min=1)
    values = (
        ious.mean(),
        intersections.sum() / max(1.0, unions.sum()),
        *((ious >= limit).mean() for limit in PRECISION_AT),
    )
    return {name: PERCENT * float(value) for name, value in zip(names, values, strict=True)}
