"""A direct implementation of average precision, as a reference for the packages' results.

As in COCO, detections of an image are matched in descending order of score with the free box of
their class with the highest IoU; the precision is the highest at a recall or above, averaged over
101 recalls and 10 IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

Box = Sequence[float]
"""x, y, width, height."""


@dataclass(frozen=True)
class Detection:
    image: int
    category: int
    box: Box
    score: float


@dataclass(frozen=True)
class GroundTruth:
    image: int
    category: int
    box: Box
    is_crowd: bool = False


def iou(box: Box, obj: GroundTruth) -> float:
    """Intersection over union; over the area of the box for a crowd."""
    x, y, w, h = box
    u, v, p, q = obj.box
    width = min(x + w, u + p) - max(x, u)
    height = min(y + h, v + q) - max(y, v)
    intersection = max(width, 0) * max(height, 0)
    return intersection / (w * h if obj.is_crowd else w * h + p * q - intersection)


def average_precision(
    detections: Sequence[Detection],
    objects: Sequence[GroundTruth],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    ignored_images: frozenset[int] = frozenset(),
) -> float:
    """AP in percent of one category; nan without ground truth.

    Args:
        detections, objects: of the category; equal scores keep their order.
        ignored_images: images in which unmatched detections are ignored.
    """
    return float(np.mean([_at_iou(detections, objects, t, ignored_images) for t in thresholds]))


def _at_iou(
    detections: Sequence[Detection],
    objects: Sequence[GroundTruth],
    threshold: float,
    ignored_images: frozenset[int],
) -> float:
    num_objects = sum(not obj.is_crowd for obj in objects)
    if num_objects == 0:
        return float("nan")
    taken: set[int] = set()
    is_correct = []
    # Images are evaluated one by one in the order of their ids.
    for one in sorted(detections, key=lambda one: (-one.score, one.image)):
        overlaps = {
            i: iou(one.box, obj)
            for i, obj in enumerate(objects)
            if obj.image == one.image and iou(one.box, obj) >= threshold
        }
        free = [i for i in overlaps if not objects[i].is_crowd and i not in taken]
        if free:
            # Of equal IoUs the packages select the last.
            taken.add(max(free, key=lambda i: (overlaps[i], i)))
            is_correct.append(True)
        elif not any(objects[i].is_crowd for i in overlaps) and one.image not in ignored_images:
            is_correct.append(False)
    num_correct = np.cumsum(is_correct)
    recalls = num_correct / num_objects
    precisions = num_correct / np.arange(1, len(is_correct) + 1)
    best = [max(precisions[recalls >= recall], default=0.0) for recall in RECALLS]
    return 100 * float(np.mean(best))
