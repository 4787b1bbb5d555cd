"""LVIS AP with and without a limit per image, compared with a direct computation."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lvis as lvis_package
import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.average_precision import IOU_THRESHOLDS, Detection, GroundTruth, average_precision
from helpers.instances import process_all

from glipv2_d2.evaluation import build_evaluator, lvis
from glipv2_d2.evaluation.lvis import best_per_class, numpy_float_alias

Register = Callable[..., str]
FREQUENCIES = "rrccff"
NUM_IMAGES = 4


@pytest.fixture
def write_lvis(tmp_path: Path, register: Register) -> Callable[..., str]:
    """Writes ground truth in LVIS's format and registers them."""

    def write(
        objects: Sequence[GroundTruth],
        absent: dict[int, list[int]] | None = None,
        not_exhaustive: dict[int, list[int]] | None = None,
    ) -> str:
        path = tmp_path / "lvis.json"
        content = {
            "categories": [
                {"id": i + 1, "name": f"class {i}", "frequency": frequency}
                for i, frequency in enumerate(FREQUENCIES)
            ],
            "images": [
                {
                    "id": i,
                    "height": 48,
                    "width": 48,
                    "neg_category_ids": [c + 1 for c in (absent or {}).get(i, [])],
                    "not_exhaustive_category_ids": [
                        c + 1 for c in (not_exhaustive or {}).get(i, [])
                    ],
                }
                for i in range(NUM_IMAGES)
            ],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": obj.image,
                    "category_id": obj.category + 1,
                    "bbox": list(obj.box),
                    "area": obj.box[2] * obj.box[3],
                    "segmentation": [[0, 0, 4, 0, 4, 4]],
                }
                for i, obj in enumerate(objects)
            ],
        }
        path.write_text(json.dumps(content))
        names = [category["name"] for category in content["categories"]]
        return register([], evaluator_type="lvis", json_file=str(path), thing_classes=names)

    return write


def evaluate(cfg: CfgNode, dataset: str, detections: Sequence[Detection]) -> dict[str, float]:
    evaluator = build_evaluator(cfg, dataset)
    process_all(evaluator, detections, range(NUM_IMAGES))
    return evaluator.evaluate()["bbox"]


BOX, ELSEWHERE = (4, 4, 10, 10), (30, 30, 10, 10)


def test_fixed_ap_of_a_worked_example(
    cfg: CfgNode, write_lvis: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two objects of one rare class in two images: a true, a false and a true positive.

    All three: precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3. The best two: recall ends
    at 0.5. At most one per image: the false positive is dropped.
    """
    dataset = write_lvis([GroundTruth(0, 0, BOX), GroundTruth(1, 0, BOX)])
    detections = [
        Detection(0, 0, BOX, 0.9),
        Detection(0, 0, ELSEWHERE, 0.8),
        Detection(1, 0, BOX, 0.7),
    ]
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    results = evaluate(cfg, dataset, detections)
    assert results["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert results["APr"] == results["AP"]
    assert math.isnan(results["APc"]) and math.isnan(results["APf"])
    monkeypatch.setattr(lvis, "FIXED_AP_LIMIT", 2)
    assert evaluate(cfg, dataset, detections)["AP"] == pytest.approx(100 * 51 / 101)
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    assert evaluate(cfg, dataset, detections)["AP"] == pytest.approx(100)


def test_a_class_without_annotation_status_in_an_image_is_ignored_there(
    cfg: CfgNode, write_lvis: Callable[..., str]
) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    detections = [Detection(0, 0, ELSEWHERE, 0.9), Detection(1, 0, BOX, 0.7)]
    objects = [GroundTruth(1, 0, BOX)]
    assert evaluate(cfg, write_lvis(objects), detections)["AP"] == pytest.approx(100)
    # It is absent from image 0: a false positive with a higher score.
    assert evaluate(cfg, write_lvis(objects, absent={0: [0]}), detections)["AP"] == pytest.approx(
        50
    )


@pytest.mark.parametrize("limit", [-1, 300])
def test_ap_without_detections_is_zero(
    limit: int, cfg: CfgNode, write_lvis: Callable[..., str]
) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    results = evaluate(cfg, write_lvis([GroundTruth(0, 0, BOX)]), [])
    assert (results["AP"], results["APr"], results["APs"]) == (0, 0, 0)
    assert math.isnan(results["APf"]) and math.isnan(results["APl"])


def random_data(
    seed: int,
) -> tuple[list[GroundTruth], list[Detection], dict[int, list[int]], dict[int, list[int]]]:
    """Boxes on a coarse grid and scores with ties, and the classes that are known to be absent."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        x, y = (4 * rng.integers(0, 4, 2)).tolist()
        width, height = (4 * rng.integers(3, 6, 2)).tolist()
        return x, y, width, height

    def place() -> tuple[int, int]:
        return int(rng.integers(NUM_IMAGES)), int(rng.integers(len(FREQUENCIES)))

    objects = [GroundTruth(*place(), box()) for _ in range(30)]
    detections = [Detection(*place(), box(), int(rng.integers(1, 10)) / 10) for _ in range(300)]
    here = {(obj.image, obj.category) for obj in objects}
    absent = defaultdict(list)
    not_exhaustive = defaultdict(list)
    for i in range(NUM_IMAGES):
        for c in range(len(FREQUENCIES)):
            if (i, c) not in here and rng.random() < 0.5:
                absent[i].append(c)
            elif (i, c) in here and rng.random() < 0.3:
                not_exhaustive[i].append(c)
    return objects, detections, absent, not_exhaustive


def direct_ap(
    objects: list[GroundTruth],
    detections: Sequence[Detection],
    absent: dict[int, list[int]],
    not_exhaustive: dict[int, list[int]],
) -> dict[str, float]:
    """Means over classes of the AP of each."""
    thresholds = {"AP": IOU_THRESHOLDS, "AP50": [0.5], "AP75": [0.75]}
    ap: dict[str, list[float]] = {name: [] for name in thresholds}
    for c in range(len(FREQUENCIES)):
        of_class = [obj for obj in objects if obj.category == c]
        known = {obj.image for obj in of_class} | {i for i in absent if c in absent[i]}
        counted = [one for one in detections if one.category == c and one.image in known]
        lenient = frozenset(i for i in not_exhaustive if c in not_exhaustive[i])
        for name, limits in thresholds.items():
            ap[name].append(average_precision(counted, of_class, limits, lenient))
    results = {name: float(np.nanmean(values)) for name, values in ap.items()}
    for name, frequency in (("APr", "r"), ("APc", "c"), ("APf", "f")):
        chosen = [v for v, f in zip(ap["AP"], FREQUENCIES, strict=True) if f == frequency]
        results[name] = float(np.nanmean(chosen))
    return results


def best_of(
    detections: list[Detection], key: Callable[[Detection], Any], limit: int
) -> list[Detection]:
    """Of each group the best; Python's sort keeps the order of equal ones."""
    groups = defaultdict(list)
    for one in detections:
        groups[key(one)].append(one)
    return [
        one
        for group in groups.values()
        for one in sorted(group, key=lambda one: -one.score)[:limit]
    ]


@pytest.mark.parametrize("seed", range(3))
def test_fixed_ap_equals_a_direct_computation(
    seed: int, cfg: CfgNode, write_lvis: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvis, "FIXED_AP_LIMIT", 12)
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    objects, detections, *known = random_data(seed)
    in_order = sorted(detections, key=lambda one: one.image)
    expected = direct_ap(objects, best_of(in_order, lambda one: one.category, 12), *known)
    results = evaluate(cfg, write_lvis(objects, *known), detections)
    assert {name: results[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_ap_with_a_limit_per_image_equals_a_direct_computation(
    seed: int, cfg: CfgNode, write_lvis: Callable[..., str]
) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = 25
    objects, detections, *known = random_data(seed)
    expected = direct_ap(objects, best_of(detections, lambda one: one.image, 25), *known)
    results = evaluate(cfg, write_lvis(objects, *known), detections)
    assert {name: results[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("limit", [-1, 25])
@pytest.mark.parametrize("seed", range(3))
def test_the_fast_evaluation_gives_the_same_metrics(
    seed: int, limit: int, cfg: CfgNode, write_lvis: Callable[..., str]
) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    objects, detections, *known = random_data(seed)
    dataset = write_lvis(objects, *known)
    slow = evaluate(cfg, dataset, detections)
    cfg.TEST.FAST_EVAL = True
    with mock.patch.object(lvis_package.LVISEval, "run", side_effect=AssertionError):
        assert evaluate(cfg, dataset, detections) == pytest.approx(slow, nan_ok=True)


def test_a_missing_fast_evaluation_raises_an_error(
    cfg: CfgNode, write_lvis: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    cfg.TEST.FAST_EVAL = True
    with pytest.raises(ValueError, match="pip install hotcoco"):
        build_evaluator(cfg, write_lvis([GroundTruth(0, 0, BOX)]))


def test_pruning_detections_does_not_change_fixed_ap(
    cfg: CfgNode, write_lvis: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvis, "FIXED_AP_LIMIT", 12)
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    objects, detections, *known = random_data(0)
    dataset = write_lvis(objects, *known)
    whole = evaluate(cfg, dataset, detections)
    monkeypatch.setattr(lvis, "MAX_KEPT_DETECTIONS", 10)
    evaluator = build_evaluator(cfg, dataset)
    process_all(evaluator, detections, range(NUM_IMAGES))
    predictions = evaluator.evaluator.evaluator._predictions
    kept = sum(len(prediction["instances"]) for prediction in predictions)
    assert kept == 12 * len(FREQUENCIES) < len(detections)
    assert evaluator.evaluate()["bbox"] == pytest.approx(whole, nan_ok=True)


def test_fixed_ap_keeps_the_best_of_each_class_over_all_images() -> None:
    def detection(category_id: int, score: float) -> dict[str, float]:
        return {"category_id": category_id, "score": score}

    predictions = [
        {"image_id": 0, "instances": [detection(1, 0.9), detection(1, 0.2), detection(2, 0.1)]},
        {"image_id": 1, "instances": [detection(1, 0.5)]},
    ]
    assert best_per_class(predictions, 2) == [
        {"image_id": 0, "instances": [detection(1, 0.9), detection(2, 0.1)]},
        {"image_id": 1, "instances": [detection(1, 0.5)]},
    ]


def test_np_float_is_defined_only_during_the_evaluation() -> None:
    with numpy_float_alias():
        assert vars(np)["float"] is float
    assert not hasattr(np, "float")
