"""Positions of text labels beside their boxes, so that labels do not cover each other.

Boxes and labels are XYXY in pixels of the image.
"""

from __future__ import annotations

import numpy as np

# Boxes of fewer label heights have their label outside, where it does not hide the object.
_MIN_HEIGHT_FOR_INSIDE = 4.0


def place_labels(
    boxes: np.ndarray, label_sizes: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """Place one label per box, in order: earlier labels get the better positions.

    A label goes to the first position at its box where it covers no earlier label, or, if there is
    none, to the position where it covers least of them.

    Args:
        boxes: (N, 4).
        label_sizes: (N, 2), (width, height) of the labels.
        image_size: (height, width). A label that fits into the image lies inside it.

    Returns:
        (N, 4), the boxes of the labels.
    """
    height, width = image_size
    labels = np.zeros((0, 4))
    for box, size in zip(boxes.astype(np.float64), label_sizes.astype(np.float64), strict=True):
        limits = np.maximum(np.array([width, height]) - size, 0)
        for corners in (_preferred_corners(box, *size), _all_corners(box, *size)):
            top_left = corners.clip(min=0, max=limits)
            candidates = np.concatenate([top_left, top_left + size], axis=1)
            covered = _intersection_areas(candidates, labels).sum(axis=1)
            if covered.min() == 0:
                break
        labels = np.concatenate([labels, candidates[[covered.argmin()]]])
    return labels


def _preferred_corners(box: np.ndarray, width: float, height: float) -> np.ndarray:
    """(8, 2), x and y of the top left corner of a label at a corner of its box, best first."""
    x0, y0, x1, y1 = box
    right = x1 - width
    above, below = [(x0, y0 - height), (right, y0 - height)], [(x0, y1), (right, y1)]
    inside = [(x0, y0), (right, y0), (x0, y1 - height), (right, y1 - height)]
    if y1 - y0 >= _MIN_HEIGHT_FOR_INSIDE * height:
        return np.array([above[0], inside[0], above[1], *inside[1:], *below])
    return np.array([*above, *below, *inside])


def _all_corners(box: np.ndarray, width: float, height: float) -> np.ndarray:
    """(M, 2), a grid of corners of a label in a box or at most half a label from it."""
    x0, y0, x1, y1 = box
    tops = np.arange(y0 - 1.5 * height, y1 + height, height / 2)
    lefts = np.arange(x0 - 1.5 * width, x1 + width, width / 2)
    return np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)


def _intersection_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) areas of the intersections of boxes (N, 4) and (M, 4)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (bottom_right - top_left).clip(min=0).prod(axis=2)
