from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.evaluation.calibration import (
    CALIBRATED,
    NEVER_RIGHT,
    NOT_REACHED,
    TOO_FEW,
    calibrate,
)
from glipv2_d2.evaluation.matching import MatchedDetections


def random_detections(seed: int, num: int, num_images: int = 4) -> MatchedDetections:
    """Of one class; scores on a coarse grid, so that several are equal."""
    rng = np.random.default_rng(seed)
    is_right = rng.random(num) < 0.5
    num_boxes = rng.integers(0, 4, size=(num_images, 1))
    num_boxes[0] += is_right.sum() + 1
    return MatchedDetections(
        rng.integers(1, 12, num) / 16,
        np.zeros(num, dtype=int),
        rng.integers(0, num_images, num),
        is_right,
        num_boxes,
    )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 30))
def test_no_other_threshold_has_a_better_f1(seed: int, num: int) -> None:
    detections = random_detections(seed, num)
    (proposal,) = calibrate(detections, ["cat"], min_positives=1).classes
    others = [detections.at_least(t).f1 for t in np.linspace(0, 1, 65)]
    if proposal.status == NEVER_RIGHT:
        assert max(others) == 0
    else:
        assert proposal.quality.f1 == pytest.approx(max(others))
        assert detections.at_least(proposal.threshold) == proposal.quality


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num=st.integers(1, 30), wanted=st.sampled_from([0.3, 0.6, 1.0])
)
def test_a_wanted_precision_keeps_as_much_as_it_allows(seed: int, num: int, wanted: float) -> None:
    detections = random_detections(seed, num)
    (proposal,) = calibrate(detections, ["cat"], precision=wanted, min_positives=1).classes
    qualities = [detections.at_least(t) for t in np.linspace(0, 1, 65)]
    qualities = [quality for quality in qualities if quality.num_detections]
    reaching = [quality.num_detections for quality in qualities if quality.precision >= wanted]
    if proposal.status == CALIBRATED:
        assert proposal.quality.precision >= wanted
        assert proposal.quality.num_detections == max(reaching)
    else:
        assert not any(q.precision >= wanted and q.num_right for q in qualities)
    if proposal.status == NOT_REACHED:
        assert proposal.quality.precision == max(quality.precision for quality in qualities)


def two_classes(num_boxes_of_second: int) -> MatchedDetections:
    """Twenty images with a box of the first class each, and a few of the second.

    The first class is right from 0.5 on; of the second nothing is.
    """
    scores = np.concatenate([np.full(20, 0.6), np.full(20, 0.4), np.full(20, 0.55)])
    classes = np.repeat([0, 0, 1], 20)
    num_boxes = np.zeros((20, 2), dtype=int)
    num_boxes[:, 0] = 1
    num_boxes[:num_boxes_of_second, 1] = 1
    return MatchedDetections(
        scores, classes, np.tile(np.arange(20), 3), np.arange(60) < 20, num_boxes
    )


def test_a_threshold_lies_between_what_is_believed_and_what_is_not() -> None:
    first, _ = calibrate(two_classes(12), ["cat", "dog"]).classes
    assert (first.threshold, first.status) == (pytest.approx(0.5), CALIBRATED)
    assert first.quality.precision == first.quality.recall == 1
    assert first.best_wrong_score == 0.4


def test_a_class_that_is_never_right_is_not_believed() -> None:
    _, second = calibrate(two_classes(12), ["cat", "dog"]).classes
    assert (second.threshold, second.status) == (1.0, NEVER_RIGHT)
    assert second.quality.num_detections == 0
    assert math.isnan(second.quality.precision)


@pytest.mark.parametrize("num_boxes", [0, 9])
def test_a_class_with_few_boxes_gets_the_threshold_of_all(num_boxes: int) -> None:
    found = calibrate(two_classes(num_boxes), ["cat", "dog"])
    second = found.classes[1]
    assert second.status == TOO_FEW
    assert second.threshold == found.overall.threshold
    assert second.quality.num_boxes == num_boxes


def test_too_few_boxes_of_all_classes_are_an_error_with_the_number() -> None:
    detections = two_classes(0).of_images(np.arange(20) < 9)
    with pytest.raises(ValueError, match="9 boxes of the 2 names, fewer than 10"):
        calibrate(detections, ["cat", "dog"])


@pytest.mark.parametrize("precision", [0, -1, 1.1])
def test_a_precision_that_is_no_share_is_named(precision: float) -> None:
    with pytest.raises(ValueError, match=f"wanted precision is {precision}"):
        calibrate(two_classes(0), ["cat", "dog"], precision=precision)


def test_thresholds_are_checked_on_the_other_half_of_the_images() -> None:
    """In even images only what scores 0.6 is right, in odd ones only what scores 0.4."""
    is_even = np.tile(np.arange(40) % 2 == 0, 2)
    scores = np.repeat([0.6, 0.4], 40)
    detections = MatchedDetections(
        scores,
        np.zeros(80, dtype=int),
        np.tile(np.arange(40), 2),
        np.where(is_even, scores == 0.6, scores == 0.4),
        np.ones((40, 1), dtype=int),
    )
    checked = calibrate(detections, ["cat"]).checked_classes
    # Of even images 0.5 is best: it finds nothing right in the odd ones. Of these all is believed
    # (F1 2/3 at any lower threshold), which finds all boxes of the even ones, half of it right.
    assert (checked.num_right, checked.num_detections, checked.num_boxes) == (20, 20 + 40, 40)
