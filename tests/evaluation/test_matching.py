"""Matching is compared with pycocotools' evaluation."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_d2.evaluation.matching import (
    MatchedDetections,
    Quality,
    match_detections,
    wilson_interval,
)

NUM_CLASSES = 3


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY, many of which overlap."""
    corners = rng.integers(0, 4, size=(count, 2)) * 10.0
    return np.concatenate([corners, corners + rng.integers(1, 4, size=(count, 2)) * 10], axis=1)


def matches_of_coco(boxes, scores, classes, gt_boxes, gt_classes, gt_is_crowd) -> dict[float, bool]:
    """Score -> whether COCO's evaluation matches the detection at IoU 0.5, without ignored ones."""
    xywh = [[x, y, x2 - x, y2 - y] for x, y, x2, y2 in gt_boxes.tolist()]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 99, "height": 99}],
        "categories": [{"id": c} for c in range(NUM_CLASSES)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": c, "bbox": b, "area": b[2] * b[3]}
            | {"iscrowd": int(crowd)}
            for i, (b, c, crowd) in enumerate(
                zip(xywh, gt_classes.tolist(), gt_is_crowd.tolist(), strict=True)
            )
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [
                {"image_id": 1, "category_id": c, "bbox": [x, y, x2 - x, y2 - y], "score": s}
                for (x, y, x2, y2), s, c in zip(
                    boxes.tolist(), scores.tolist(), classes.tolist(), strict=True
                )
            ]
        )
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e9]], ["all"]
        evaluation.evaluate()
    return {
        score: bool(match)
        for result in evaluation.evalImgs
        if result is not None
        for score, match, ignored in zip(
            result["dtScores"], result["dtMatches"][0], result["dtIgnore"][0], strict=True
        )
        if not ignored
    }


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 12), num_gt=st.integers(1, 8))
def test_true_positives_are_those_of_coco(seed: int, num: int, num_gt: int) -> None:
    rng = np.random.default_rng(seed)
    # Different scores, which identify the detections.
    scores = rng.permutation(np.linspace(0.05, 0.95, num))
    image = (
        random_boxes(rng, num),
        scores,
        rng.integers(0, NUM_CLASSES, num),
        random_boxes(rng, num_gt),
        rng.integers(0, NUM_CLASSES, num_gt),
        rng.random(num_gt) < 0.25,
    )
    found = match_detections(*image, NUM_CLASSES)
    ours = dict(zip(found.scores.tolist(), found.is_true_positive.tolist(), strict=True))
    assert ours == matches_of_coco(*image)
    counted = image[4][~image[5]]
    assert found.num_boxes.tolist() == [[(counted == c).sum() for c in range(NUM_CLASSES)]]


def detections_of(rows: list[tuple[int, int, float, bool]], num_boxes) -> MatchedDetections:
    """From rows of (image, class, score, is_true_positive)."""
    images, classes, scores, correct = (np.array(x) for x in zip(*rows, strict=True))
    return MatchedDetections(scores, classes, images, correct, np.array(num_boxes))


THREE_IMAGES = detections_of(
    [(0, 0, 0.9, True), (0, 1, 0.8, False), (1, 1, 0.7, True), (2, 0, 0.6, False)],
    [[2, 0], [0, 1], [0, 3]],
)


def test_an_image_without_detections_counts_its_boxes() -> None:
    nothing = np.zeros(0)
    found = match_detections(
        np.zeros((0, 4)), nothing, nothing, np.ones((2, 4)), np.array([1, 1]), np.zeros(2), 3
    )
    assert len(found.scores) == 0
    assert found.num_boxes.tolist() == [[0, 2, 0]]


def test_cat_concatenates_the_images() -> None:
    merged = MatchedDetections.cat([THREE_IMAGES, THREE_IMAGES])
    assert merged.images.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    assert merged.num_boxes.tolist() == [[2, 0], [0, 1], [0, 3]] * 2


def test_selected_images_keep_their_detections_and_boxes() -> None:
    part = THREE_IMAGES.select_images(np.array([True, False, True]))
    assert part.scores.tolist() == [0.9, 0.8, 0.6]
    assert part.images.tolist() == [0, 0, 1]
    assert part.num_boxes.tolist() == [[2, 0], [0, 3]]


def test_quality_counts_detections_at_or_above_the_threshold() -> None:
    quality = THREE_IMAGES.quality_at(0.7)
    assert quality == Quality(num_true_positives=2, num_detections=3, num_boxes=6)
    assert (quality.precision, quality.recall) == (2 / 3, 2 / 6)
    assert quality.f1 == pytest.approx(2 / (3 / 2 + 6 / 2))
    per_class = THREE_IMAGES.quality_at(np.array([0.95, 0.75])[THREE_IMAGES.classes])
    assert per_class == Quality(num_true_positives=0, num_detections=1, num_boxes=6)


def test_undefined_metrics_are_nan() -> None:
    assert np.isnan(
        [Quality(0, 0, 3).precision, Quality(0, 2, 0).recall, Quality(0, 0, 0).f1]
    ).all()


@pytest.mark.parametrize(("correct", "num"), [(0, 5), (5, 5), (3, 4), (50, 60)])
def test_interval_bounds_satisfy_wilsons_equation(correct: int, num: int) -> None:
    """Wilson: the proportions p with (correct / num - p)^2 = z^2 p (1 - p) / num."""
    for p in wilson_interval(correct, num):
        if 0 < p < 1:
            assert (correct / num - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / num)
    low, high = wilson_interval(correct, num)
    assert low <= correct / num <= high
