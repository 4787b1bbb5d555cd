"""Average precision in its plainest form, to hold the packages' results against.

Definitions are COCO's: detections of an image take, best first, the box of their class that they
overlap most; precision is the best at a recall or above, averaged over 101 recalls and 10 IoUs.
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
class Found:
    image: int
    category: int
    box: Box
    score: float


@dataclass(frozen=True)
class Thing:
    image: int
    category: int
    box: Box
    is_crowd: bool = False


def iou(box: Box, thing: Thing) -> float:
    """Intersection over union; over the area of the box for a crowd."""
    x, y, w, h = box
    u, v, p, q = thing.box
    width = min(x + w, u + p) - max(x, u)
    height = min(y + h, v + q) - max(y, v)
    intersection = max(width, 0) * max(height, 0)
    return intersection / (w * h if thing.is_crowd else w * h + p * q - intersection)


def average_precision(
    found: Sequence[Found],
    things: Sequence[Thing],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    not_counted: frozenset[int] = frozenset(),
) -> float:
    """AP in percent of one category; nan without things.

    Args:
        found, things: of the category; of equal scores the first ones come first.
        not_counted: images in which a detection without a thing is no mistake.
    """
    return float(np.mean([_at_iou(found, things, t, not_counted) for t in thresholds]))


def _at_iou(
    found: Sequence[Found], things: Sequence[Thing], threshold: float, not_counted: frozenset[int]
) -> float:
    num_things = sum(not thing.is_crowd for thing in things)
    if num_things == 0:
        return float("nan")
    taken: set[int] = set()
    is_right = []
    # Images are evaluated one by one in the order of their ids.
    for one in sorted(found, key=lambda one: (-one.score, one.image)):
        overlaps = {
            i: iou(one.box, thing)
            for i, thing in enumerate(things)
            if thing.image == one.image and iou(one.box, thing) >= threshold
        }
        free = [i for i in overlaps if not things[i].is_crowd and i not in taken]
        if free:
            # Of equal overlaps the packages take the last.
            taken.add(max(free, key=lambda i: (overlaps[i], i)))
            is_right.append(True)
        elif not any(things[i].is_crowd for i in overlaps) and one.image not in not_counted:
            is_right.append(False)
    num_right = np.cumsum(is_right)
    recalls = num_right / num_things
    precisions = num_right / np.arange(1, len(is_right) + 1)
    best = [max(precisions[recalls >= recall], default=0.0) for recall in RECALLS]
    return 100 * float(np.mean(best))
