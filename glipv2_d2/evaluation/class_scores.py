"""Statistics of the best score per class and image: absent classes, sensitivity to prompt order.

I: images. C: classes. R: orders of the class names in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassSummary:
    """The scores of a class over several images.

    Attributes:
        best_score: highest score in any image.
        best_image: the image with that score.
        median_score: median over the images of their best scores.
        num_images: number of images whose best score reaches the threshold; 0: absent.
    """

    name: str
    best_score: float
    best_image: str
    median_score: float
    num_images: int


def summarize_classes(
    names: Sequence[str], images: Sequence[str], scores: np.ndarray, threshold: np.ndarray
) -> list[ClassSummary]:
    """One summary per class, in descending order of the best score.

    Args:
        scores: (I, C), the best score of each class in each image, I >= 1.
        threshold: (C,), the score from which a class counts as detected.
    """
    summaries = [
        ClassSummary(
            name,
            best_score=float(class_scores.max()),
            best_image=images[int(class_scores.argmax())],
            median_score=float(np.median(class_scores)),
            num_images=int((class_scores >= min_score).sum()),
        )
        for name, class_scores, min_score in zip(names, scores.T, threshold, strict=True)
    ]
    return sorted(summaries, key=lambda summary: -summary.best_score)


@dataclass(frozen=True)
class OrderSensitivity:
    """How much scores depend on the prompt order; *spread*: highest minus lowest score.

    Attributes:
        names: C class names.
        class_mean_spread, class_max_spread: (C,), over the images.
        class_mean_score: (C,), over images and orders.
        mean_spread, max_spread: over images and classes.
        changed_decisions: fraction of (image, class) pairs that reach the threshold in some orders
            only.
        changed_top_classes: fraction of images whose highest-scoring class depends on the order.
    """

    names: list[str]
    class_mean_spread: np.ndarray
    class_max_spread: np.ndarray
    class_mean_score: np.ndarray
    mean_spread: float
    max_spread: float
    changed_decisions: float
    changed_top_classes: float


def order_sensitivity(
    names: Sequence[str], scores: np.ndarray, threshold: np.ndarray
) -> OrderSensitivity:
    """Compare the scores of several orders.

    Args:
        scores: (R, I, C), the best scores, with classes in the order of ``names``; R, I >= 1.
        threshold: (C,), the score from which a class counts as detected.
    """
    spreads = scores.max(axis=0) - scores.min(axis=0)
    is_detected = scores >= threshold
    top_classes = scores.argmax(axis=2)
    return OrderSensitivity(
        list(names),
        class_mean_spread=spreads.mean(axis=0),
        class_max_spread=spreads.max(axis=0),
        class_mean_score=scores.mean(axis=(0, 1)),
        mean_spread=float(spreads.mean()),
        max_spread=float(spreads.max()),
        changed_decisions=float((is_detected.any(axis=0) != is_detected.all(axis=0)).mean()),
        changed_top_classes=float((top_classes != top_classes[0]).any(axis=0).mean()),
    )
