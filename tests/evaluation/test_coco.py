"""COCO's AP of our evaluator, against a direct computation."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.average_precision import IOU_THRESHOLDS, Detection, GroundTruth, average_precision
from helpers.instances import process_all
from pycocotools.cocoeval import COCOeval

from glipv2_d2.evaluation import build_evaluator

Register = Callable[..., str]
NUM_IMAGES, NUM_CLASSES = 4, 3
BOX, ELSEWHERE = (4, 4, 10, 10), (30, 30, 10, 10)
FAST = [name for name in ("faster_coco_eval",) if importlib.util.find_spec(name)]


@pytest.fixture
def write_coco(tmp_path: Path, register: Register) -> Callable[..., str]:
    def write(objects: Sequence[GroundTruth], **of_annotation: object) -> str:
        path = tmp_path / "coco.json"
        names = [f"class {c}" for c in range(NUM_CLASSES)]
        content = {
            "info": {},
            "categories": [{"id": c, "name": name} for c, name in enumerate(names)],
            "images": [{"id": i, "height": 48, "width": 48} for i in range(NUM_IMAGES)],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": obj.image,
                    "category_id": obj.category,
                    "bbox": list(obj.box),
                    "area": obj.box[2] * obj.box[3],
                    "iscrowd": int(obj.is_crowd),
                    **of_annotation,
                }
                for i, obj in enumerate(objects)
            ],
        }
        path.write_text(json.dumps(content))
        return register(
            [],
            evaluator_type="coco",
            json_file=str(path),
            thing_classes=names,
            thing_dataset_id_to_contiguous_id={c: c for c in range(NUM_CLASSES)},
        )

    return write


def evaluate(
    cfg: CfgNode, dataset: str, detections: Sequence[Detection]
) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(cfg, dataset)
    process_all(evaluator, detections, range(NUM_IMAGES))
    return evaluator.evaluate()


def random_data(seed: int) -> tuple[list[GroundTruth], list[Detection]]:
    """Boxes on a coarse grid, scores with ties, every fourth object a crowd."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        x, y = (4 * rng.integers(0, 4, 2)).tolist()
        width, height = (4 * rng.integers(3, 6, 2)).tolist()
        return x, y, width, height

    def place() -> tuple[int, int]:
        return int(rng.integers(NUM_IMAGES)), int(rng.integers(NUM_CLASSES))

    objects = [GroundTruth(*place(), box(), is_crowd=i % 4 == 0) for i in range(24)]
    return objects, [Detection(*place(), box(), int(rng.integers(1, 10)) / 10) for _ in range(200)]


@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_a_direct_computation(
    seed: int, cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    objects, detections = random_data(seed)
    results = evaluate(cfg, write_coco(objects), detections)["bbox"]
    for name, limits in (("AP", IOU_THRESHOLDS), ("AP50", [0.5]), ("AP75", [0.75])):
        expected = [
            average_precision(
                [one for one in detections if one.category == c],
                [obj for obj in objects if obj.category == c],
                limits,
            )
            for c in range(NUM_CLASSES)
        ]
        assert results[name] == pytest.approx(np.mean(expected))


def test_detections_in_a_crowd_are_ignored(cfg: CfgNode, write_coco: Callable[..., str]) -> None:
    objects = [GroundTruth(0, 0, BOX), GroundTruth(0, 0, (20, 20, 28, 28), is_crowd=True)]
    detections = [Detection(0, 0, ELSEWHERE, 0.9), Detection(0, 0, BOX, 0.8)]
    assert evaluate(cfg, write_coco(objects), detections)["bbox"]["AP"] == pytest.approx(100)


def test_ap_without_detections_is_zero(cfg: CfgNode, write_coco: Callable[..., str]) -> None:
    results = evaluate(cfg, write_coco([GroundTruth(0, 0, BOX)]), [])["bbox"]
    assert (results["AP"], results["AP50"], results["APs"]) == (0, 0, 0)
    assert math.isnan(results["APm"])


@pytest.mark.parametrize("detections", [[], [Detection(0, 0, BOX, 0.9)]])
def test_ap_without_ground_truth_is_nan(
    detections: list[Detection], cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    crowd = GroundTruth(1, 0, BOX, is_crowd=True)
    assert math.isnan(evaluate(cfg, write_coco([crowd]), detections)["bbox"]["AP"])


def test_masks_are_evaluated_only_if_all_ground_truth_has_them(
    cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    cfg.MODEL.MASK_ON = True
    assert evaluate(cfg, write_coco([GroundTruth(0, 0, BOX)]), []).keys() == {"bbox"}
    square = [[4, 4, 14, 4, 14, 14, 4, 14]]
    dataset = write_coco([GroundTruth(0, 0, BOX)], segmentation=square)
    assert evaluate(cfg, dataset, []).keys() == {"bbox", "segm"}


def test_the_fast_evaluation_replaces_the_default_one(
    cfg: CfgNode, write_coco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    class Counted(COCOeval):
        def evaluate(self) -> None:
            computed.append(self.params.iouType)
            super().evaluate()

    package = types.ModuleType("faster_coco_eval")
    package.COCOeval_faster = Counted
    monkeypatch.setitem(sys.modules, "faster_coco_eval", package)
    objects, detections = random_data(0)
    dataset = write_coco(objects)
    slow = evaluate(cfg, dataset, detections)["bbox"]
    assert computed == []
    cfg.TEST.FAST_EVAL = True
    assert evaluate(cfg, dataset, detections)["bbox"] == pytest.approx(slow, nan_ok=True)
    assert computed == ["bbox"]


@pytest.mark.parametrize("package", FAST)
def test_an_installed_fast_evaluation_gives_the_same_metrics(
    package: str, cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    for seed in range(3):
        objects, detections = random_data(seed)
        dataset = write_coco(objects)
        cfg.TEST.FAST_EVAL = False
        slow = evaluate(cfg, dataset, detections)["bbox"]
        cfg.TEST.FAST_EVAL = True
        assert evaluate(cfg, dataset, detections)["bbox"] == pytest.approx(slow, nan_ok=True)


def test_a_missing_fast_evaluation_raises_an_error(
    cfg: CfgNode, write_coco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    cfg.TEST.FAST_EVAL = True
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        build_evaluator(cfg, write_coco([GroundTruth(0, 0, BOX)]))
