"""Masks of truths and boxes, and what is said of their overlaps.

An image is (H, W) pixels; a pixel belongs to a box when its centre does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from glipv2_d2.evaluation.phrases import PERCENT

Overlap = tuple[int, int]
"""Pixels of the intersection and of the union of two masks."""

PRECISION_AT = (0.5, 0.7, 0.9)


def union_of_segmentations(
    segmentations: Sequence[Any], image_size: tuple[int, int]
) -> np.ndarray | None:
    """(H, W) bool, the pixels of any mask; None where one of the things has no mask.

    Args:
        segmentations: COCO's, polygons or an RLE for each thing, None for one without.
    """
    if not segmentations or any(segmentation is None for segmentation in segmentations):
        return None
    union = np.zeros(image_size, dtype=bool)
    for segmentation in segmentations:
        rle = segmentation
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *image_size))
        union |= coco_mask.decode(rle).astype(bool)
    return union


def union_of_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the pixels of any box of (K, 4) XYXY.

    >>> union_of_boxes(np.array([[0.6, 0.0, 2.4, 1.0]]), (1, 4)).tolist()
    [[False, True, False, False]]
    """
    union = np.zeros(image_size, dtype=bool)
    # The first pixel whose centre is not before an edge; what lies outside is cut off.
    for x1, y1, x2, y2 in np.ceil(boxes - 0.5).clip(min=0).astype(int).tolist():
        union[y1:y2, x1:x2] = True
    return union


def overlap(a: np.ndarray, b: np.ndarray) -> Overlap:
    """Of two masks of one size.

    >>> overlap(np.array([True, True, False]), np.array([False, True, True]))
    (1, 3)
    """
    return int((a & b).sum()), int((a | b).sum())


def iou_metrics(overlaps: Sequence[Overlap], name_of_overall: str) -> dict[str, float]:
    """Mean IoU, overall IoU and precisions, in percent; nan without any phrase.

    The overall IoU divides the sum of the intersections by that of the unions: large things count
    more. P@0.5 is the share of phrases with an IoU of at least 0.5. Two empty masks have IoU 0.

    >>> iou_metrics([(1, 2), (0, 6)], "oIoU")
    {'mIoU': 25.0, 'oIoU': 12.5, 'P@0.5': 50.0, 'P@0.7': 0.0, 'P@0.9': 0.0}
    """
    names = ("mIoU", name_of_overall, *(f"P@{limit}" for limit in PRECISION_AT))
    if not overlaps:
        return dict.fromkeys(names, float("nan"))
    intersections, unions = np.array(overlaps, dtype=np.float64).T
    ious = intersections / unions.clip(min=1)
    values = (
        ious.mean(),
        intersections.sum() / max(1.0, unions.sum()),
        *((ious >= limit).mean() for limit in PRECISION_AT),
    )
    return {name: PERCENT * float(value) for name, value in zip(names, values, strict=True)}
