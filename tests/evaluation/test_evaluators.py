"""Each dataset gets the evaluator of its metadata, and predictions in its classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances
from detectron2.structures import Boxes, Instances
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.evaluation import build_evaluator


@pytest.fixture
def coco(tmp_path: Path) -> Iterator[str]:
    register_coco_instances("evaluated_coco", {}, *map(str, write_coco(tmp_path / "coco")))
    yield from registered("evaluated_coco")


@pytest.fixture
def lvis(tmp_path: Path) -> Iterator[str]:
    annotations, images = write_coco(tmp_path / "lvis")
    content = json.loads(annotations.read_text())
    for number, category in enumerate(content["categories"], 1):
        category.update(id=number, frequency="f")
    for annotation in content["annotations"]:
        annotation.update(
            category_id=annotation["category_id"] // 10, segmentation=[[4, 6, 24, 6, 24, 22]]
        )
    for image in content["images"]:
        image.update(
            coco_url=f"http://images/{image['file_name']}",
            neg_category_ids=[],
            not_exhaustive_category_ids=[],
        )
    annotations.write_text(json.dumps(content))
    # Detectron2 selects LVIS's 1203 class names by the version in the dataset name.
    register_lvis_instances("evaluated_lvis_v1", {}, str(annotations), str(images))
    yield from registered("evaluated_lvis_v1")


def registered(name: str) -> Iterator[str]:
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def correct_output(classes: list[str], name: str) -> dict[str, Instances]:
    return {
        "instances": Instances(
            (48, 48),
            pred_boxes=Boxes([[4.0, 6.0, 24.0, 22.0]]),
            scores=torch.tensor([0.9]),
            pred_classes=torch.tensor([classes.index(name)]),
        )
    }


def evaluate(cfg: CfgNode, dataset: str, classes_of: Any = None) -> dict[str, float]:
    """Metrics of correct predictions; ``classes_of`` maps an image index to its class names."""
    records = DatasetCatalog.get(dataset)
    names = MetadataCatalog.get(dataset).thing_classes
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    for i, record in enumerate(records):
        classes = classes_of(i) if classes_of else names
        name = names[record["annotations"][0]["category_id"]]
        evaluator.process([{**record, "classes": classes}], [correct_output(classes, name)])
    return evaluator.evaluate()["bbox"]


def test_correct_predictions_on_coco_have_ap_100(cfg: CfgNode, coco: str) -> None:
    assert evaluate(cfg, coco)["AP"] == pytest.approx(100)


def test_correct_predictions_on_lvis_have_ap_100(cfg: CfgNode, lvis: str) -> None:
    assert evaluate(cfg, lvis)["AP"] == pytest.approx(100)


def test_fixed_ap_of_correct_predictions_is_100(cfg: CfgNode, lvis: str) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    assert evaluate(cfg, lvis)["AP"] == pytest.approx(100)


def test_each_image_may_have_its_own_class_names(cfg: CfgNode, coco: str) -> None:
    def rotated(i: int) -> list[str]:
        k = i % len(NAMES)
        return [*NAMES[k:], *NAMES[:k]]

    assert evaluate(cfg, coco, rotated)["AP"] == pytest.approx(100)


def test_a_class_outside_the_dataset_raises_an_error(cfg: CfgNode, coco: str) -> None:
    with pytest.raises(ValueError, match="unicorn"):
        evaluate(cfg, coco, lambda i: [*NAMES, "unicorn"])


def test_phrases_of_a_caption_are_not_classes(cfg: CfgNode, coco: str) -> None:
    evaluator = build_evaluator(cfg, coco)
    evaluator.reset()
    output = {**correct_output(["a cat"], "a cat"), "phrases": ["a cat"]}
    with pytest.raises(ValueError, match=r"photo\.jpg.*caption"):
        evaluator.process([{"file_name": "photo.jpg", "caption": "a cat"}], [output])


def test_only_result_files_are_in_the_output_folder(cfg: CfgNode, coco: str) -> None:
    evaluate(cfg, coco)
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    assert [path.name for path in folder.iterdir()] == [coco]
    assert "coco_instances_results.json" in {path.name for path in (folder / coco).iterdir()}


def test_an_unfinished_evaluation_keeps_the_files_of_the_last_one(cfg: CfgNode, coco: str) -> None:
    evaluate(cfg, coco)
    results = Path(cfg.OUTPUT_DIR) / "inference" / coco / "coco_instances_results.json"
    before = results.read_text()
    build_evaluator(cfg, coco).reset()
    assert results.read_text() == before


def test_a_dataset_without_an_evaluator_raises_an_error(cfg: CfgNode) -> None:
    MetadataCatalog.get("paintings").set(evaluator_type="taste")
    try:
        with pytest.raises(ValueError, match=r"paintings.*'taste'.*coco"):
            build_evaluator(cfg, "paintings")
    finally:
        MetadataCatalog.remove("paintings")
