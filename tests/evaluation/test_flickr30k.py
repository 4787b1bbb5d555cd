"""Phrase recall, compared with worked examples and with an exhaustive search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from helpers.models import tiny_cfg, tiny_model
from helpers.phrase_data import model_output, random_boxes, record
from helpers.torchrun import torchrun

from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.drawn import write_drawn
from glipv2_d2.data.readers.grounding import register_phrase_boxes
from glipv2_d2.engine.train.distributed import torchrun_process_group
from glipv2_d2.evaluation import build_evaluator

Register = Callable[..., str]
Outputs = dict[Any, dict[str, Any]]


def evaluate(cfg: CfgNode, dataset: str, outputs: Outputs) -> dict[str, dict[str, float]]:
    """Metrics of outputs by image id; images without an output are not processed."""
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    for reference in DatasetCatalog.get(dataset):
        if reference["image_id"] in outputs:
            evaluator.process([reference], [outputs[reference["image_id"]]])
    return evaluator.evaluate()


TWO_DOGS = {"two dogs": [(0, 0, 10, 10), (20, 0, 30, 10)], "a mat": [(0, 12, 30, 20)]}


def test_a_phrase_is_found_by_any_box_or_by_the_merged_box(
    cfg: CfgNode, register: Register
) -> None:
    dataset = register([record(1, TWO_DOGS)], evaluator_type="flickr30k")
    # The best box is one dog, the next one both together; of the mat there is none.
    output = model_output([(0, 0, 30, 10), (20, 0, 30, 10)], [0.5, 0.9], [0, 0])
    results = evaluate(cfg, dataset, {1: output})
    assert results == {
        "grounding": {"R@1": 50, "R@5": 50, "R@10": 50, "R@all": 50},
        "grounding_merged": {"R@1": 0, "R@5": 50, "R@10": 50, "R@all": 50},
    }


def test_a_box_of_another_phrase_does_not_count(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(1, TWO_DOGS)], evaluator_type="flickr30k")
    output = model_output([(0, 0, 10, 10), (0, 12, 30, 20)], [0.9, 0.9], [1, 0])
    assert evaluate(cfg, dataset, {1: output})["grounding"]["R@all"] == 0


@pytest.mark.parametrize(("bottom", "recall"), [(5, 100), (4.9, 0)])
def test_an_iou_of_half_is_enough(
    bottom: float, recall: float, cfg: CfgNode, register: Register
) -> None:
    dataset = register([record(1, {"it": [(0, 0, 10, 10)]})], evaluator_type="flickr30k")
    output = model_output([(0, 0, 10, bottom)], [0.9], [0])
    assert evaluate(cfg, dataset, {1: output})["grounding"]["R@1"] == recall


def test_of_equal_scores_the_models_first_box_comes_first(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(1, {"it": [(0, 0, 10, 10)]})], evaluator_type="flickr30k")
    wrong, right = (20, 0, 30, 10), (0, 0, 10, 10)
    for boxes, recall in (([wrong, right], 0), ([right, wrong], 100)):
        results = evaluate(cfg, dataset, {1: model_output(boxes, [0.5, 0.5], [0, 0])})
        assert results["grounding"]["R@1"] == recall


def test_phrases_without_boxes_are_skipped(cfg: CfgNode, register: Register) -> None:
    truth = {"a dog": [(0, 0, 10, 10)], "the sky": []}
    dataset = register([record(1, truth)], evaluator_type="flickr30k")
    output = model_output([(0, 0, 10, 10), (0, 0, 30, 5)], [0.9, 0.9], [0, 1])
    assert evaluate(cfg, dataset, {1: output})["grounding"]["R@1"] == 100


def test_recall_without_ground_truth_is_nan(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(1, {"the sky": []})], evaluator_type="flickr30k")
    results = evaluate(cfg, dataset, {1: model_output([], [], [])})
    assert all(math.isnan(value) for recall in results.values() for value in recall.values())


def test_crowds_count_as_boxes(cfg: CfgNode, register: Register) -> None:
    crowd = record(1, {"people": [(0, 0, 10, 10)]}, is_crowd=True)
    dataset = register([crowd], evaluator_type="flickr30k")
    output = model_output([(0, 0, 10, 10)], [0.9], [0])
    assert evaluate(cfg, dataset, {1: output})["grounding"]["R@1"] == 100


def test_each_phrase_type_has_its_recall(cfg: CfgNode, register: Register) -> None:
    boxes = [(0, 0, 10, 10)]
    kinds = {"a man": ["people"], "his dress": ["clothing", "other"], "a cup": ["other"]}
    truth = dict.fromkeys(kinds, boxes)
    dataset = register([record(1, truth, kinds=kinds)], evaluator_type="flickr30k")
    # The man and the dress are found, the cup is not.
    recall = evaluate(cfg, dataset, {1: model_output(boxes * 2, [0.9, 0.9], [0, 1])})["grounding"]
    assert recall["R@1"] == pytest.approx(200 / 3)
    assert recall["R@1-people"] == 100
    assert recall["R@1-clothing"] == 100
    assert recall["R@1-other"] == 50


def random_data(seed: int) -> tuple[list[dict[str, Any]], Outputs]:
    """Images with one to three phrases of one to three boxes, and outputs with many ties."""
    rng = np.random.default_rng(seed)
    records, outputs = [], {}
    for image_id in range(30):
        num_phrases = int(rng.integers(1, 4))
        truth = {f"phrase {i}": random_boxes(rng, rng.integers(1, 4)) for i in range(num_phrases)}
        records.append(record(image_id, truth))
        number = int(rng.integers(0, 40))
        outputs[image_id] = model_output(
            random_boxes(rng, number),
            rng.integers(1, 6, number) / 6,
            rng.integers(0, num_phrases, number),
        )
    return records, outputs


def searched_recall(records: list[dict[str, Any]], outputs: Outputs) -> dict[str, dict]:
    """Recall by a loop over all boxes of all phrases."""
    found: dict[str, dict[str, list[bool]]] = {"grounding": {}, "grounding_merged": {}}
    for reference in records:
        instances = outputs[reference["image_id"]]["instances"]
        rows = list(zip(instances.pred_boxes.tensor.tolist(), instances.scores.tolist(),
                        instances.pred_classes.tolist(), strict=True))  # fmt: skip
        for label in range(len(reference["phrases"])):
            truth = [a["bbox"] for a in reference["annotations"] if a["category_id"] == label]
            columns = list(zip(*truth, strict=True))
            merged = [[*map(min, columns[:2]), *map(max, columns[2:])]]
            ranked = sorted((row for row in rows if row[2] == label), key=lambda row: -row[1])
            for task, boxes in (("grounding", truth), ("grounding_merged", merged)):
                hits = [any(overlap(row[0], box) >= 0.5 for box in boxes) for row in ranked]
                for name, k in (("R@1", 1), ("R@5", 5), ("R@10", 10), ("R@all", None)):
                    found[task].setdefault(name, []).append(any(hits[:k]))
    return {
        task: {name: 100 * sum(hits) / len(hits) for name, hits in recall.items()}
        for task, recall in found.items()
    }


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("seed", range(5))
def test_recall_equals_that_of_an_exhaustive_search(
    seed: int, cfg: CfgNode, register: Register
) -> None:
    records, outputs = random_data(seed)
    results = evaluate(cfg, register(records, evaluator_type="flickr30k"), outputs)
    expected = searched_recall(records, outputs)
    assert 0 < expected["grounding"]["R@1"] < expected["grounding"]["R@all"]
    for task, recall in expected.items():
        assert results[task] == pytest.approx(recall)


def evaluate_half(cfg: CfgNode, dataset: str, outputs: Outputs) -> tuple[Any, list[Any]]:
    """Metrics of every second image, and the image ids in the result file."""
    with torchrun_process_group():
        share = {key: outputs[key] for key in list(outputs)[comm.get_rank() :: 2]}
        results = evaluate(cfg, dataset, share)
        comm.synchronize()
    path = Path(cfg.OUTPUT_DIR) / "inference" / dataset / "phrase_recall.json"
    return results, [row["image_id"] for row in json.loads(path.read_text())]


def test_two_processes_give_the_result_of_one(cfg: CfgNode, register: Register) -> None:
    records, outputs = random_data(0)
    dataset = register(records, evaluator_type="flickr30k")
    alone = evaluate(cfg, dataset, outputs)
    (first, images), (second, _) = torchrun(
        evaluate_half, cfg, dataset, outputs, start_method="fork"
    )
    assert first == alone
    assert second == {}
    assert images == sorted(images)


def test_captions_of_drawn_scenes_are_evaluated_end_to_end(tmp_path: Path) -> None:
    """From annotation files through data loader and model to metrics."""
    name, image_root = "drawn_captions", tmp_path / "val"
    file = write_drawn(tmp_path, split="val", num_images=3, size=64, seed=0)
    register_phrase_boxes(name, str(file), str(image_root))
    cfg = tiny_cfg("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "output"))
    loader, evaluator = build_test_loader(cfg, name), build_evaluator(cfg, name)
    results = inference_on_dataset(
        tiny_model("MODEL.GROUNDING.SCORE_THRESH", 0.0), loader, evaluator
    )
    rows = json.loads((tmp_path / "output/inference" / name / "phrase_recall.json").read_text())
    content = json.loads(file.read_text())
    spans = {(a["image_id"], str(a["tokens_positive"])) for a in content["annotations"]}
    assert len(rows) == len(spans) > 3
    assert all(0 < len(row["boxes"]) <= 10 for row in rows)
    assert 0 <= results["grounding"]["R@1"] <= results["grounding"]["R@all"] <= 100
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_warning_reports_images_without_outputs(
    cfg: CfgNode, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = register([record(1, TWO_DOGS), record(2, TWO_DOGS)], evaluator_type="flickr30k")
    evaluate(cfg, dataset, {1: model_output([], [], [])})
    assert "2 of the 4 phrases" in caplog.text


def test_the_result_of_each_phrase_is_written(cfg: CfgNode, register: Register) -> None:
    dataset = register([record("1_0", TWO_DOGS)], evaluator_type="flickr30k")
    evaluate(cfg, dataset, {"1_0": model_output([(0, 0, 30, 10)], [0.5], [0])})
    [path] = Path(cfg.OUTPUT_DIR).rglob("*.json")
    dogs, mat = json.loads(path.read_text())
    assert (dogs["image_id"], dogs["phrase"]) == ("1_0", "two dogs")
    assert (dogs["grounding"], dogs["grounding_merged"]) == (None, 1)
    assert (mat["phrase"], mat["boxes"]) == ("a mat", [])


@pytest.mark.parametrize(
    ("change", "output", "message"),
    [
        ({"image_id": 7}, model_output([], [], []), "image_id 7"),
        ({"phrases": [[(0, 1)]]}, model_output([], [], []), "not those of its record"),
        ({}, {"instances": model_output([], [], [])["instances"]}, "not those of its record"),
    ],
)
def test_outputs_of_another_prompt_raise_an_error(
    change: dict[str, Any],
    output: dict[str, Any],
    message: str,
    cfg: CfgNode,
    register: Register,
) -> None:
    reference = record(1, TWO_DOGS)
    evaluator = build_evaluator(cfg, register([reference], evaluator_type="flickr30k"))
    evaluator.reset()
    with pytest.raises(ValueError, match=message):
        evaluator.process([{**reference, **change}], [output])
