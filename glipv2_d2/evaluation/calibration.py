"""Calibrate score thresholds per class on a few labelled images.

The precision P at a threshold is the fraction of true positives among the detections with at least
that score, the recall R is the fraction of ground-truth boxes that they match, and
F1 = 2 P R / (P + R).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glipv2_d2.evaluation.matching import MatchedDetections, Quality

MIN_POSITIVES = 10
"""Ground-truth boxes that a class needs for its own threshold. With ten boxes the standard error
of the recall is up to 16 points; with fewer, a threshold would be noise."""

CALIBRATED = "calibrated"
TOO_FEW = "too few boxes"
NO_TRUE_POSITIVE = "no true positive"
NOT_REACHED = "precision not reached"


@dataclass(frozen=True)
class ClassThreshold:
    """The proposed threshold of a class and its quality.

    Attributes:
        status: :data:`CALIBRATED`; :data:`TOO_FEW`: the threshold of all classes together is used;
            :data:`NO_TRUE_POSITIVE`: the threshold is 1; or :data:`NOT_REACHED`: the requested
            precision is not reached, and the threshold is that of the highest precision.
        quality: at the threshold, on the calibration images.
        best_wrong_score: highest score of a false positive; nan if there is none.
    """

    name: str
    threshold: float
    status: str
    quality: Quality
    best_wrong_score: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds per class, and for all classes together.

    Attributes:
        overall: one threshold for all classes.
        classes: per class, in the given order.
        held_out_overall, held_out_classes: quality of one threshold for all classes and of
            thresholds per class by two-fold cross-validation over the images.
    """

    overall: ClassThreshold
    classes: list[ClassThreshold]
    held_out_overall: Quality
    held_out_classes: Quality


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
        precision: select the lowest threshold with at least this precision; default: the
            threshold with the highest F1.
        min_positives: ground-truth boxes that a class needs for its own threshold.

    Raises:
        ValueError: all classes together have fewer than ``min_positives`` boxes, or ``precision``
            is not in (0, 1].
    """
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"precision is {precision}; it must be above 0 and at most 1")
    num_boxes = int(detections.num_boxes.sum())
    if num_boxes < max(1, min_positives):
        raise ValueError(
            f"the images have {num_boxes} boxes of the {len(names)} classes, fewer than "
            f"{max(1, min_positives)}, which is too few for a threshold; label more images"
        )
    overall, classes = _thresholds(detections, names, precision, min_positives)
    folds = [_evaluate_fold(detections, names, precision, min_positives, k) for k in (0, 1)]
    return Calibration(
        overall,
        classes,
        held_out_overall=_sum([overall for overall, _ in folds]),
        held_out_classes=_sum([per_class for _, per_class in folds]),
    )


def _thresholds(
    detections: MatchedDetections,
    names: Sequence[str],
    precision: float | None,
    min_positives: int,
) -> tuple[ClassThreshold, list[ClassThreshold]]:
    overall = _threshold_of(detections, "all classes", precision)
    classes = []
    for class_, name in enumerate(names):
        of_class = detections.select_class(class_)
        if of_class.num_boxes.sum() >= min_positives:
            classes.append(_threshold_of(of_class, name, precision))
        else:
            classes.append(_describe(of_class, name, overall.threshold, TOO_FEW))
    return overall, classes


def _threshold_of(
    detections: MatchedDetections, name: str, precision: float | None
) -> ClassThreshold:
    if not detections.is_true_positive.any():
        return _describe(detections, name, 1.0, NO_TRUE_POSITIVE)
    order = np.argsort(-detections.scores, kind="stable")
    scores, num_true_positives = (
        detections.scores[order],
        np.cumsum(detections.is_true_positive[order]),
    )
    num_kept = np.arange(1, len(scores) + 1)
    # Detections with equal scores are kept or dropped together.
    is_last = np.append(scores[1:] < scores[:-1], True)
    status = CALIBRATED
    if precision is None:
        value = 2 * num_true_positives / (num_kept + detections.num_boxes.sum())
        best = np.flatnonzero(is_last)[value[is_last].argmax()]
    else:
        precisions = num_true_positives / num_kept
        reaches = np.flatnonzero(is_last & (precisions >= precision))
        if len(reaches):
            best = reaches[-1]
        else:
            status = NOT_REACHED
            best = np.flatnonzero(is_last)[precisions[is_last].argmax()]
    # Midway between the last detection that is kept and the first that is not.
    following = scores[best + 1] if best + 1 < len(scores) else scores[best]
    return _describe(detections, name, float(scores[best] + following) / 2, status)


def _describe(
    detections: MatchedDetections, name: str, threshold: float, status: str
) -> ClassThreshold:
    wrong = detections.scores[~detections.is_true_positive]
    best_wrong = float(wrong.max()) if len(wrong) else math.nan
    return ClassThreshold(name, threshold, status, detections.quality_at(threshold), best_wrong)


def _evaluate_fold(
    detections: MatchedDetections,
    names: Sequence[str],
    precision: float | None,
    min_positives: int,
    fold: int,
) -> tuple[Quality, Quality]:
    """Quality on one half of the images with the thresholds of the other: overall, per class."""
    in_fold = np.arange(len(detections.num_boxes)) % 2 == fold
    training, held_out = detections.select_images(~in_fold), detections.select_images(in_fold)
    overall, classes = _thresholds(training, names, precision, min_positives)
    per_class = np.array([class_.threshold for class_ in classes])
    return (
        held_out.quality_at(overall.threshold),
        held_out.quality_at(per_class[held_out.classes]),
    )


def _sum(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        sum(quality.num_true_positives for quality in qualities),
        sum(quality.num_detections for quality in qualities),
        sum(quality.num_boxes for quality in qualities),
    )
