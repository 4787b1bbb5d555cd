from __future__ import annotations

import json
import math

import numpy as np

from glipv2_d2.evaluation.calibration import calibrate
from glipv2_d2.evaluation.matching import MatchedDetections
from glipv2_d2.evaluation.name_reports import (
    NameReport,
    absent_report,
    calibration_report,
    order_report,
)
from glipv2_d2.evaluation.name_scores import order_sensitivity, summarize_names

NAMES = ["cat", "dog"]


def test_a_name_is_absent_where_no_picture_reaches_its_threshold() -> None:
    scores = np.array([[0.2, 0.9], [0.3, 0.1], [0.1, 0.5]])
    dog, cat = summarize_names(NAMES, ["a", "b", "c"], scores, np.array([0.31, 0.5]))
    assert (dog.name, dog.best_score, dog.best_image, dog.num_images) == ("dog", 0.9, "a", 2)
    assert (cat.name, cat.best_score, cat.best_image, cat.num_images) == ("cat", 0.3, "b", 0)
    assert (cat.median_score, dog.median_score) == (0.2, 0.5)
    report = absent_report([dog, cat], {"cat": 0.31, "dog": 0.5}, 3)
    assert report.content["absent"] == ["cat"]
    assert "1 of 2 names" in report.text()


def test_spreads_are_over_the_orders_of_one_picture() -> None:
    # Two orders, two pictures, two names.
    scores = np.array([[[0.2, 0.9], [0.6, 0.5]], [[0.25, 0.9], [0.3, 0.5]]])
    found = order_sensitivity(NAMES, scores, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found.mean_spread_of_name, [0.175, 0])
    np.testing.assert_allclose(found.max_spread_of_name, [0.3, 0])
    np.testing.assert_allclose(found.mean_score_of_name, [0.3375, 0.7])
    np.testing.assert_allclose([found.mean_spread, found.max_spread], [0.0875, 0.3])
    # The cat of the second picture is seen in one order only, where it is the surest name.
    assert found.changed_decisions == 1 / 4
    assert found.changed_best_names == 1 / 2
    report = order_report(found, num_images=2, num_orders=2, num_averaged=0)
    assert [row[0] for row in report.rows] == ["cat", "dog"]
    assert "25.00%" in report.text() and "50.00%" in report.text()


def test_a_report_is_a_table_a_page_and_json() -> None:
    report = NameReport(
        "Title",
        ("name", "score"),
        [["cat | dog", 0.25], ["犬", math.nan]],
        ["What follows."],
        {"rows": [{"score": math.nan}], "share": 0.5},
    )
    assert "0.250" in report.text() and "nan" not in report.text()
    assert report.text("github").startswith("# Title\n\n| name")
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == {
        "rows": [{"score": None}],
        "share": 0.5,
    }


def test_a_calibration_names_what_it_could_not_tell() -> None:
    detections = MatchedDetections(
        scores=np.array([0.9, 0.8, 0.3]),
        classes=np.array([0, 0, 1]),
        images=np.array([0, 1, 1]),
        is_right=np.array([True, True, False]),
        num_boxes=np.array([[1, 0], [1, 1]]),
    )
    found = calibrate(detections, NAMES, min_positives=2)
    report = calibration_report(found, num_images=2, wanted="the best F1")
    assert "1 of 2 names have too few boxes" in report.text()
    names = report.to_json()["names"]
    assert [row["status"] for row in names] == ["calibrated", "too few boxes"]
    assert names[0]["precision"] == 1 and names[1]["precision"] is None
