from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.evaluation.calibration import (
    CALIBRATED,
    NO_TRUE_POSITIVE,
    NOT_REACHED,
    TOO_FEW,
    calibrate,
)
from glipv2_d2.evaluation.matching import MatchedDetections


def random_detections(seed: int, num: int, num_images: int = 4) -> MatchedDetections:
    """Detections of one class; scores on a coarse grid, so that several are equal."""
    rng = np.random.default_rng(seed)
    is_true_positive = rng.random(num) < 0.5
    num_boxes = rng.integers(0, 4, size=(num_images, 1))
    num_boxes[0] += is_true_positive.sum() + 1
    return MatchedDetections(
        rng.integers(1, 12, num) / 16,
        np.zeros(num, dtype=int),
        rng.integers(0, num_images, num),
        is_true_positive,
        num_boxes,
    )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 30))
def test_no_other_threshold_has_a_better_f1(seed: int, num: int) -> None:
    detections = random_detections(seed, num)
    (proposal,) = calibrate(detections, ["cat"], min_positives=1).classes
    others = [detections.quality_at(t).f1 for t in np.linspace(0, 1, 65)]
    if proposal.status == NO_TRUE_POSITIVE:
        assert max(others) == 0
    else:
        assert proposal.quality.f1 == pytest.approx(max(others))
        assert detections.quality_at(proposal.threshold) == proposal.quality


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num=st.integers(1, 30), target=st.sampled_from([0.3, 0.6, 1.0])
)
def test_a_target_precision_keeps_as_many_detections_as_possible(
    seed: int, num: int, target: float
) -> None:
    detections = random_detections(seed, num)
    (proposal,) = calibrate(detections, ["cat"], precision=target, min_positives=1).classes
    qualities = [detections.quality_at(t) for t in np.linspace(0, 1, 65)]
    qualities = [quality for quality in qualities if quality.num_detections]
    reaching = [quality.num_detections for quality in qualities if quality.precision >= target]
    if proposal.status == CALIBRATED:
        assert proposal.quality.precision >= target
        assert proposal.quality.num_detections == max(reaching)
    else:
        assert not any(q.precision >= target and q.num_true_positives for q in qualities)
    if proposal.status == NOT_REACHED:
        assert proposal.quality.precision == max(quality.precision for quality in qualities)


def two_classes(num_boxes_of_second: int) -> MatchedDetections:
    """Twenty images with one box of the first class each, and a few boxes of the second.

    Detections of the first class are correct from score 0.5, those of the second never.
    """
    scores = np.concatenate([np.full(20, 0.6), np.full(20, 0.4), np.full(20, 0.55)])
    classes = np.repeat([0, 0, 1], 20)
    num_boxes = np.zeros((20, 2), dtype=int)
    num_boxes[:, 0] = 1
    num_boxes[:num_boxes_of_second, 1] = 1
    return MatchedDetections(
        scores, classes, np.tile(np.arange(20), 3), np.arange(60) < 20, num_boxes
    )


def test_a_threshold_is_midway_between_kept_and_dropped_scores() -> None:
    first, _ = calibrate(two_classes(12), ["cat", "dog"]).classes
    assert (first.threshold, first.status) == (pytest.approx(0.5), CALIBRATED)
    assert first.quality.precision == first.quality.recall == 1
    assert first.best_wrong_score == 0.4


def test_a_class_without_true_positives_has_the_threshold_one() -> None:
    _, second = calibrate(two_classes(12), ["cat", "dog"]).classes
    assert (second.threshold, second.status) == (1.0, NO_TRUE_POSITIVE)
    assert second.quality.num_detections == 0
    assert math.isnan(second.quality.precision)


@pytest.mark.parametrize("num_boxes", [0, 9])
def test_a_class_with_few_boxes_uses_the_overall_threshold(num_boxes: int) -> None:
    found = calibrate(two_classes(num_boxes), ["cat", "dog"])
    second = found.classes[1]
    assert second.status == TOO_FEW
    assert second.threshold == found.overall.threshold
    assert second.quality.num_boxes == num_boxes


def test_too_few_boxes_of_all_classes_raise_an_error() -> None:
    detections = two_classes(0).select_images(np.arange(20) < 9)
    with pytest.raises(ValueError, match="9 boxes of the 2 classes, fewer than 10"):
        calibrate(detections, ["cat", "dog"])


@pytest.mark.parametrize("precision", [0, -1, 1.1])
def test_a_precision_outside_0_to_1_raises_an_error(precision: float) -> None:
    with pytest.raises(ValueError, match=f"precision is {precision};"):
        calibrate(two_classes(0), ["cat", "dog"], precision=precision)


def test_held_out_quality_is_measured_on_the_other_half_of_the_images() -> None:
    """Correct detections score 0.6 in even images and 0.4 in odd ones."""
    is_even = np.tile(np.arange(40) % 2 == 0, 2)
    scores = np.repeat([0.6, 0.4], 40)
    detections = MatchedDetections(
        scores,
        np.zeros(80, dtype=int),
        np.tile(np.arange(40), 2),
        np.where(is_even, scores == 0.6, scores == 0.4),
        np.ones((40, 1), dtype=int),
    )
    held_out = calibrate(detections, ["cat"]).held_out_classes
    # The threshold 0.5 of the even images has no true positives in the odd ones. That of the odd
    # images keeps everything (F1 2/3), which finds all boxes of the even ones, half of it correct.
    assert (held_out.num_true_positives, held_out.num_detections, held_out.num_boxes) == (
        20,
        20 + 40,
        40,
    )
