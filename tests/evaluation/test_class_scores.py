from __future__ import annotations

import json
import math

import numpy as np

from glipv2_d2.evaluation.calibration import calibrate
from glipv2_d2.evaluation.class_reports import (
    ClassReport,
    absent_report,
    calibration_report,
    order_report,
)
from glipv2_d2.evaluation.class_scores import order_sensitivity, summarize_classes
from glipv2_d2.evaluation.matching import MatchedDetections

NAMES = ["cat", "dog"]


def test_a_class_is_absent_if_no_image_reaches_its_threshold() -> None:
    scores = np.array([[0.2, 0.9], [0.3, 0.1], [0.1, 0.5]])
    dog, cat = summarize_classes(NAMES, ["a", "b", "c"], scores, np.array([0.31, 0.5]))
    assert (dog.name, dog.best_score, dog.best_image, dog.num_images) == ("dog", 0.9, "a", 2)
    assert (cat.name, cat.best_score, cat.best_image, cat.num_images) == ("cat", 0.3, "b", 0)
    assert (cat.median_score, dog.median_score) == (0.2, 0.5)
    report = absent_report([dog, cat], {"cat": 0.31, "dog": 0.5}, 3)
    assert report.content["absent"] == ["cat"]
    assert "1 of 2 classes" in report.text()


def test_spreads_are_over_the_orders_of_one_image() -> None:
    # Two orders, two images, two classes.
    scores = np.array([[[0.2, 0.9], [0.6, 0.5]], [[0.25, 0.9], [0.3, 0.5]]])
    found = order_sensitivity(NAMES, scores, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found.class_mean_spread, [0.175, 0])
    np.testing.assert_allclose(found.class_max_spread, [0.3, 0])
    np.testing.assert_allclose(found.class_mean_score, [0.3375, 0.7])
    np.testing.assert_allclose([found.mean_spread, found.max_spread], [0.0875, 0.3])
    # The cat of the second image is detected in one order only, where it has the top score.
    assert found.changed_decisions == 1 / 4
    assert found.changed_top_classes == 1 / 2
    report = order_report(found, num_images=2, num_orders=2, num_averaged=0)
    assert [row[0] for row in report.rows] == ["cat", "dog"]
    assert "25.00%" in report.text() and "50.00%" in report.text()


def test_a_report_is_text_markdown_and_json() -> None:
    report = ClassReport(
        "Title",
        ("class", "score"),
        [["cat | dog", 0.25], ["犬", math.nan]],
        ["A conclusion."],
        {"rows": [{"score": math.nan}], "fraction": 0.5},
    )
    assert "0.250" in report.text() and "nan" not in report.text()
    assert report.text("github").startswith("# Title\n\n| class")
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == {
        "rows": [{"score": None}],
        "fraction": 0.5,
    }


def test_a_calibration_report_lists_classes_with_too_few_boxes() -> None:
    detections = MatchedDetections(
        scores=np.array([0.9, 0.8, 0.3]),
        classes=np.array([0, 0, 1]),
        images=np.array([0, 1, 1]),
        is_true_positive=np.array([True, True, False]),
        num_boxes=np.array([[1, 0], [1, 1]]),
    )
    found = calibrate(detections, NAMES, min_positives=2)
    report = calibration_report(found, num_images=2, target="the best F1")
    assert "1 of 2 classes have too few boxes" in report.text()
    names = report.to_json()["names"]
    assert [row["status"] for row in names] == ["calibrated", "too few boxes"]
    assert names[0]["precision"] == 1 and names[1]["precision"] is None
