"""Matches, confusions and curves of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glipv2_d2.data.coco_truth import CocoTruth, read_truth
from glipv2_d2.engine.finetune.report_numbers import (
    Detections,
    best_threshold,
    confusion,
    match_images,
    precision_recall,
    read_curves,
    read_detections,
    worst_images,
)

CAT, DOG = 3, 7
LEFT, RIGHT, FAR = [0, 0, 10, 10], [20, 0, 10, 10], [50, 50, 10, 10]


@pytest.fixture
def truth(tmp_path: Path) -> CocoTruth:
    """A cat left and a dog right in image 1, nothing in image 2."""
    size = {"height": 99, "width": 99}
    boxes = [(CAT, LEFT), (DOG, RIGHT)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", **size} for i in (1, 2)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": category, "bbox": box}
            for i, (category, box) in enumerate(boxes)
        ],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return read_truth(str(path))


def detections(*rows: tuple[int, int, list[int], float]) -> Detections:
    found: dict[Any, list[dict[str, Any]]] = {}
    for image_id, category, box, score in sorted(rows, key=lambda row: -row[3]):
        row = {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        found.setdefault(image_id, []).append(row)
    return found


def test_confusions_misses_and_false_detections_are_counted(truth: CocoTruth) -> None:
    found = detections((1, CAT, LEFT, 0.9), (1, CAT, RIGHT, 0.8), (2, DOG, FAR, 0.7))
    counts = confusion(truth, match_images(truth, found, 0.5).values())
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    counts = confusion(truth, match_images(truth, found, 0.85).values())
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_right_class_is_matched_before_a_better_score(truth: CocoTruth) -> None:
    found = detections((1, DOG, LEFT, 0.9), (1, CAT, LEFT, 0.6), (1, DOG, RIGHT, 0.6))
    (match, _) = match_images(truth, found, 0.5).values()
    assert sorted(match.pairs) == [(CAT, CAT), (DOG, DOG)]
    assert (match.missed, match.false) == ([], [DOG])
    assert [match.is_right(row) for row in found[1]] == [False, True, True]
    assert all(match.is_right(box) for box in truth.annotations_of[1])


def test_the_image_with_the_most_errors_is_the_worst(truth: CocoTruth) -> None:
    found = detections((2, CAT, FAR, 0.9), *[(2, CAT, LEFT, 0.8)] * 2, (1, CAT, LEFT, 0.9))
    assert worst_images(match_images(truth, found, 0.5), 12) == [2, 1]
    assert worst_images(match_images(truth, found, 0.85), 1) == [1]


def test_the_best_threshold_keeps_hits_and_drops_what_follows(truth: CocoTruth) -> None:
    found = detections((1, CAT, LEFT, 0.9), (1, DOG, RIGHT, 0.4), (2, DOG, FAR, 0.3))
    assert best_threshold(truth, found) == 0.4
    assert 0 < best_threshold(truth, {}) < 1


def test_precision_is_that_of_pycocotools(truth: CocoTruth) -> None:
    found = detections((1, CAT, LEFT, 0.9), (1, DOG, FAR, 0.9), (1, DOG, RIGHT, 0.5))
    curve = precision_recall(truth, found, 0.5)
    # The cat is perfect, half of the dogs are.
    assert curve[0] == (0.0, pytest.approx(0.75))
    assert precision_recall(truth, {}, 0.5) == []


def test_damaged_and_repeated_lines_of_metrics(tmp_path: Path) -> None:
    lines = ['{"iteration": 4, "loss": 1}', '{"iteration": 4, "loss": 2, "AP": null}', '{"iter']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    curves = read_curves(tmp_path / "metrics.json", ["loss", "AP"])
    assert curves == {"loss": [(4.0, 2.0)], "AP": []}
    assert read_curves(tmp_path / "absent.json", ["loss"]) == {"loss": []}
    assert read_detections(tmp_path / "absent.json") == {}
