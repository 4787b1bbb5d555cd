"""Which score is enough to believe a box of a name, from a few labelled images.

For a threshold, precision P is the share of right ones among the detections at or above it, recall
R the share of boxes that have one, and F1 = 2 P R / (P + R).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glipv2_d2.evaluation.matching import MatchedDetections, Quality

MIN_POSITIVES = 10
"""Boxes that a class needs for a threshold of its own. The standard error of a recall that ten
boxes measure is up to 16 points; of fewer, a threshold would be chance."""

CALIBRATED = "calibrated"
TOO_FEW = "too few boxes"
NEVER_RIGHT = "never right"
NOT_REACHED = "precision not reached"


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold that is proposed for a class, and how far it can be trusted.

    Attributes:
        status: :data:`CALIBRATED`; :data:`TOO_FEW`: the threshold is that of all classes together;
            :data:`NEVER_RIGHT`: no detection was right, none should be believed; or
            :data:`NOT_REACHED`: that of the highest precision.
        quality: at the threshold, on the images that it was chosen on.
        best_wrong_score: of the surest wrong detection; nan where there is none.
    """

    name: str
    threshold: float
    status: str
    quality: Quality
    best_wrong_score: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds for every class, and for all together.

    Attributes:
        overall: one threshold for all names.
        classes: per class, in the caller's order.
        checked_overall, checked_classes: how good one threshold for all and those of the classes
            are on images that they were not chosen on: each half with the thresholds of the other.
    """

    overall: ClassThreshold
    classes: list[ClassThreshold]
    checked_overall: Quality
    checked_classes: Quality


def calibrate(
    detections: MatchedDetections,
    names: Sequence[str],
    *,
    precision: float | None = None,
    min_positives: int = MIN_POSITIVES,
) -> Calibration:
    """Propose a threshold per class.

    Args:
        names: C.
        precision: the lowest threshold at which so many detections are right; default: the
            threshold of the best F1.
        min_positives: boxes that a class needs for a threshold of its own.

    Raises:
        ValueError: all classes together have fewer boxes than that, or ``precision`` is no share.
    """
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"the wanted precision is {precision}; it lies above 0 and up to 1")
    num_boxes = int(detections.num_boxes.sum())
    if num_boxes < max(1, min_positives):
        raise ValueError(
            f"the images have {num_boxes} boxes of the {len(names)} names, fewer than "
            f"{max(1, min_positives)}: too few to tell any threshold; label more images"
        )
    overall, classes = _thresholds(detections, names, precision, min_positives)
    checked = [_check_halves(detections, names, precision, min_positives, k) for k in (0, 1)]
    return Calibration(
        overall,
        classes,
        checked_overall=_sum([of_all for of_all, _ in checked]),
        checked_classes=_sum([of_classes for _, of_classes in checked]),
    )


def _thresholds(
    detections: MatchedDetections,
    names: Sequence[str],
    precision: float | None,
    min_positives: int,
) -> tuple[ClassThreshold, list[ClassThreshold]]:
    overall = _threshold_of(detections, "all names", precision)
    classes = []
    for class_, name in enumerate(names):
        own = detections.of_class(class_)
        if own.num_boxes.sum() >= min_positives:
            classes.append(_threshold_of(own, name, precision))
        else:
            classes.append(_describe(own, name, overall.threshold, TOO_FEW))
    return overall, classes


def _threshold_of(
    detections: MatchedDetections, name: str, precision: float | None
) -> ClassThreshold:
    if not detections.is_right.any():
        return _describe(detections, name, 1.0, NEVER_RIGHT)
    order = np.argsort(-detections.scores, kind="stable")
    scores, num_right = detections.scores[order], np.cumsum(detections.is_right[order])
    num_kept = np.arange(1, len(scores) + 1)
    # Detections of one score are believed together or not at all.
    is_last = np.append(scores[1:] < scores[:-1], True)
    status = CALIBRATED
    if precision is None:
        value = 2 * num_right / (num_kept + detections.num_boxes.sum())
        best = np.flatnonzero(is_last)[value[is_last].argmax()]
    else:
        precisions = num_right / num_kept
        reaches = np.flatnonzero(is_last & (precisions >= precision))
        if len(reaches):
            best = reaches[-1]
        else:
            status = NOT_REACHED
            best = np.flatnonzero(is_last)[precisions[is_last].argmax()]
    # In the middle between the last that is believed and the first that is not.
    following = scores[best + 1] if best + 1 < len(scores) else scores[best]
    return _describe(detections, name, float(scores[best] + following) / 2, status)


def _describe(
    detections: MatchedDetections, name: str, threshold: float, status: str
) -> ClassThreshold:
    wrong = detections.scores[~detections.is_right]
    best_wrong = float(wrong.max()) if len(wrong) else math.nan
    return ClassThreshold(name, threshold, status, detections.at_least(threshold), best_wrong)


def _check_halves(
    detections: MatchedDetections,
    names: Sequence[str],
    precision: float | None,
    min_positives: int,
    half: int,
) -> tuple[Quality, Quality]:
    """The thresholds of one half of the images on the other: one for all, and per class."""
    in_half = np.arange(len(detections.num_boxes)) % 2 == half
    known, unknown = detections.of_images(~in_half), detections.of_images(in_half)
    overall, classes = _thresholds(known, names, precision, min_positives)
    of_classes = np.array([class_.threshold for class_ in classes])
    return unknown.at_least(overall.threshold), unknown.at_least(of_classes[unknown.classes])


def _sum(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        sum(quality.num_right for quality in qualities),
        sum(quality.num_detections for quality in qualities),
        sum(quality.num_boxes for quality in qualities),
    )
