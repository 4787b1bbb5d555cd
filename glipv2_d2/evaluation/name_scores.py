"""What the best scores of names over many images say: which are absent, what their order moves.

I: images. C: names. R: orders in which the names were asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NameSummary:
    """The scores of a name over a folder.

    Attributes:
        best_score: in any image.
        best_image: where that is.
        median_score: of the best scores of the images.
        num_images: whose best score reaches the threshold; 0: the name is absent as far as the
            model can tell.
    """

    name: str
    best_score: float
    best_image: str
    median_score: float
    num_images: int


def summarize_names(
    names: Sequence[str], images: Sequence[str], scores: np.ndarray, threshold: np.ndarray
) -> list[NameSummary]:
    """One summary per name, the surest first.

    Args:
        scores: (I, C), the best score of every name in every image; at least one image.
        threshold: (C,), the score at which a name counts as seen.
    """
    summaries = [
        NameSummary(
            name,
            best_score=float(of_name.max()),
            best_image=images[int(of_name.argmax())],
            median_score=float(np.median(of_name)),
            num_images=int((of_name >= least).sum()),
        )
        for name, of_name, least in zip(names, scores.T, threshold, strict=True)
    ]
    return sorted(summaries, key=lambda summary: -summary.best_score)


@dataclass(frozen=True)
class OrderSensitivity:
    """How far the order of the names moves their scores; a *spread* is highest minus lowest.

    Attributes:
        names: C.
        mean_spread_of_name, max_spread_of_name: (C,), over the images.
        mean_score_of_name: (C,), over images and orders.
        mean_spread, max_spread: over images and names.
        changed_decisions: the share of (image, name) pairs whose score is at the threshold in some
            orders and below it in others.
        changed_best_names: the share of images whose surest name depends on the order.
    """

    names: list[str]
    mean_spread_of_name: np.ndarray
    max_spread_of_name: np.ndarray
    mean_score_of_name: np.ndarray
    mean_spread: float
    max_spread: float
    changed_decisions: float
    changed_best_names: float


def order_sensitivity(
    names: Sequence[str], scores: np.ndarray, threshold: np.ndarray
) -> OrderSensitivity:
    """Compare the scores of several orders.

    Args:
        scores: (R, I, C), the best scores in the same order of names whichever order was asked; at
            least one order and image.
        threshold: (C,), the score at which a name counts as seen.
    """
    spreads = scores.max(axis=0) - scores.min(axis=0)
    is_seen = scores >= threshold
    best_names = scores.argmax(axis=2)
    return OrderSensitivity(
        list(names),
        mean_spread_of_name=spreads.mean(axis=0),
        max_spread_of_name=spreads.max(axis=0),
        mean_score_of_name=scores.mean(axis=(0, 1)),
        mean_spread=float(spreads.mean()),
        max_spread=float(spreads.max()),
        changed_decisions=float((is_seen.any(axis=0) != is_seen.all(axis=0)).mean()),
        changed_best_names=float((best_names != best_names[0]).any(axis=0).mean()),
    )
