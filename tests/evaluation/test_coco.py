"""COCO's AP through our evaluator, against a plain search; what is there and what is not found."""

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
from helpers.average_precision import IOU_THRESHOLDS, Found, Thing, average_precision
from helpers.instances import process_all
from pycocotools.cocoeval import COCOeval

from glipv2_d2.evaluation import build_evaluator

Register = Callable[..., str]
NUM_IMAGES, NUM_CLASSES = 4, 3
BOX, ELSEWHERE = (4, 4, 10, 10), (30, 30, 10, 10)
FAST = [name for name in ("faster_coco_eval",) if importlib.util.find_spec(name)]


@pytest.fixture
def write_coco(tmp_path: Path, register: Register) -> Callable[..., str]:
    def write(things: Sequence[Thing], **of_annotation: object) -> str:
        path = tmp_path / "coco.json"
        names = [f"class {c}" for c in range(NUM_CLASSES)]
        content = {
            "info": {},
            "categories": [{"id": c, "name": name} for c, name in enumerate(names)],
            "images": [{"id": i, "height": 48, "width": 48} for i in range(NUM_IMAGES)],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": thing.image,
                    "category_id": thing.category,
                    "bbox": list(thing.box),
                    "area": thing.box[2] * thing.box[3],
                    "iscrowd": int(thing.is_crowd),
                    **of_annotation,
                }
                for i, thing in enumerate(things)
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


def evaluate(cfg: CfgNode, dataset: str, found: Sequence[Found]) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(cfg, dataset)
    process_all(evaluator, found, range(NUM_IMAGES))
    return evaluator.evaluate()


def random_data(seed: int) -> tuple[list[Thing], list[Found]]:
    """Boxes on a coarse grid, scores with ties, every fourth thing a crowd."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        x, y = (4 * rng.integers(0, 4, 2)).tolist()
        width, height = (4 * rng.integers(3, 6, 2)).tolist()
        return x, y, width, height

    def place() -> tuple[int, int]:
        return int(rng.integers(NUM_IMAGES)), int(rng.integers(NUM_CLASSES))

    things = [Thing(*place(), box(), is_crowd=i % 4 == 0) for i in range(24)]
    return things, [Found(*place(), box(), int(rng.integers(1, 10)) / 10) for _ in range(200)]


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_what_a_plain_search_gives(
    seed: int, cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    things, found = random_data(seed)
    results = evaluate(cfg, write_coco(things), found)["bbox"]
    for name, limits in (("AP", IOU_THRESHOLDS), ("AP50", [0.5]), ("AP75", [0.75])):
        expected = [
            average_precision(
                [one for one in found if one.category == c],
                [thing for thing in things if thing.category == c],
                limits,
            )
            for c in range(NUM_CLASSES)
        ]
        assert results[name] == pytest.approx(np.mean(expected))


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong(
    cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    things = [Thing(0, 0, BOX), Thing(0, 0, (20, 20, 28, 28), is_crowd=True)]
    found = [Found(0, 0, ELSEWHERE, 0.9), Found(0, 0, BOX, 0.8)]
    assert evaluate(cfg, write_coco(things), found)["bbox"]["AP"] == pytest.approx(100)


def test_nothing_found_is_zero_where_there_are_things(
    cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    results = evaluate(cfg, write_coco([Thing(0, 0, BOX)]), [])["bbox"]
    assert (results["AP"], results["AP50"], results["APs"]) == (0, 0, 0)
    assert math.isnan(results["APm"])


@pytest.mark.parametrize("found", [[], [Found(0, 0, BOX, 0.9)]])
def test_without_things_there_is_no_number(
    found: list[Found], cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    crowd = Thing(1, 0, BOX, is_crowd=True)
    assert math.isnan(evaluate(cfg, write_coco([crowd]), found)["bbox"]["AP"])


def test_masks_count_only_where_all_of_the_truth_has_them(
    cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    cfg.MODEL.MASK_ON = True
    assert evaluate(cfg, write_coco([Thing(0, 0, BOX)]), []).keys() == {"bbox"}
    square = [[4, 4, 14, 4, 14, 14, 4, 14]]
    dataset = write_coco([Thing(0, 0, BOX)], segmentation=square)
    assert evaluate(cfg, dataset, []).keys() == {"bbox", "segm"}


def test_the_fast_evaluation_computes_in_place_of_the_slow_one(
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
    things, found = random_data(0)
    dataset = write_coco(things)
    slow = evaluate(cfg, dataset, found)["bbox"]
    assert computed == []
    cfg.TEST.FAST_EVAL = True
    assert evaluate(cfg, dataset, found)["bbox"] == pytest.approx(slow, nan_ok=True)
    assert computed == ["bbox"]


@pytest.mark.parametrize("package", FAST)
def test_an_installed_fast_evaluation_gives_the_same_numbers(
    package: str, cfg: CfgNode, write_coco: Callable[..., str]
) -> None:
    for seed in range(3):
        things, found = random_data(seed)
        dataset = write_coco(things)
        cfg.TEST.FAST_EVAL = False
        slow = evaluate(cfg, dataset, found)["bbox"]
        cfg.TEST.FAST_EVAL = True
        assert evaluate(cfg, dataset, found)["bbox"] == pytest.approx(slow, nan_ok=True)


def test_a_fast_evaluation_that_is_not_installed_is_named(
    cfg: CfgNode, write_coco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    cfg.TEST.FAST_EVAL = True
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        build_evaluator(cfg, write_coco([Thing(0, 0, BOX)]))
