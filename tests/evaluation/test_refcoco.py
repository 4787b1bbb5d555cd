"""Referring expressions: the best box and the best mask, against worked examples and pixel sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.phrase_data import SIZE, model_output, random_boxes, random_masks, record
from pycocotools import mask as coco_mask

from glipv2_d2.evaluation import build_evaluator

Register = Callable[..., str]
TARGET = (0, 0, 10, 10)


def evaluate(cfg: CfgNode, dataset: str, outputs: dict[Any, Any]) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    for reference in DatasetCatalog.get(dataset):
        evaluator.process([reference], [outputs[reference["image_id"]]])
    return evaluator.evaluate()


def encode(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_the_box_with_the_highest_score_is_the_prediction(cfg: CfgNode, register: Register) -> None:
    records = [record(i, {"the left dog": [TARGET]}) for i in range(4)]
    dataset = register(records, evaluator_type="refcoco")
    wrong = (20, 10, 30, 20)
    outputs = {
        0: model_output([wrong, TARGET], [0.1, 0.9], [0, 0]),  # right
        1: model_output([TARGET, wrong], [0.1, 0.9], [0, 0]),  # right at the second place
        2: model_output([], [], []),
        3: model_output([(0, 0, 10, 6)], [0.4], [0]),  # IoU 0.6
    }
    results = evaluate(cfg, dataset, outputs)
    assert results.keys() == {"referring_bbox"}
    assert results["referring_bbox"] == pytest.approx(
        {"P@0.5": 50, "P@0.7": 25, "P@0.9": 25, "mIoU": 40, "top5": 75, "top10": 75}
    )


def test_a_correct_box_at_rank_six_counts_for_top10(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(0, {"it": [TARGET]})], evaluator_type="refcoco")
    boxes = [(20, 10, 30, 20)] * 5 + [TARGET]
    results = evaluate(cfg, dataset, {0: model_output(boxes, [0.5] * 6, [0] * 6)})
    assert (results["referring_bbox"]["top5"], results["referring_bbox"]["top10"]) == (0, 100)


def test_of_equal_scores_the_first_box_is_the_prediction(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(0, {"it": [TARGET]})], evaluator_type="refcoco")
    boxes = [TARGET, (20, 10, 30, 20)]
    results = evaluate(cfg, dataset, {0: model_output(boxes, [0.5, 0.5], [0, 0])})
    assert results["referring_bbox"]["P@0.5"] == 100


def test_metrics_without_targets_are_nan(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(0, {"it": []})], evaluator_type="refcoco")
    results = evaluate(cfg, dataset, {0: model_output([TARGET], [0.5], [0])})
    assert all(math.isnan(value) for value in results["referring_bbox"].values())


def test_the_best_mask_is_compared_with_the_target_mask(cfg: CfgNode, register: Register) -> None:
    """A polygon of 10 x 10 pixels, and half of it found; another one of 4 x 5, of which nothing."""
    half = np.zeros((1, *SIZE), dtype=bool)
    half[0, :10, :5] = True
    records = [
        record(0, {"it": [TARGET]}, masks={"it": [[[0, 0, 10, 0, 10, 10, 0, 10]]]}),
        record(1, {"it": [(0, 0, 4, 5)]}, masks={"it": [[[0, 0, 4, 0, 4, 5, 0, 5]]]}),
    ]
    dataset = register(records, evaluator_type="refcoco")
    nothing = model_output([], [], [], np.zeros((0, *SIZE), dtype=bool))
    results = evaluate(cfg, dataset, {0: model_output([TARGET], [0.9], [0], half), 1: nothing})
    # 50 of 100 and 0 of 20 pixels.
    assert results["referring_segm"] == pytest.approx(
        {"mIoU": 25, "oIoU": 100 * 50 / 120, "P@0.5": 50, "P@0.7": 0, "P@0.9": 0}
    )


def test_expressions_without_a_mask_have_no_mask_metrics(cfg: CfgNode, register: Register) -> None:
    records = [record(0, {"it": [TARGET]}, masks={"it": [None]})]
    mask = np.ones((1, *SIZE), dtype=bool)
    dataset = register(records, evaluator_type="refcoco")
    results = evaluate(cfg, dataset, {0: model_output([TARGET], [0.9], [0], mask)})
    assert results.keys() == {"referring_bbox"}


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_pixel_sets(seed: int, cfg: CfgNode, register: Register) -> None:
    rng = np.random.default_rng(seed)
    records, outputs, areas = [], {}, []
    for i in range(20):
        [gt_mask] = random_masks(rng, 1)
        truth = {"it": random_boxes(rng, 1)}
        records.append(record(i, truth, masks={"it": [encode(gt_mask)]}))
        number = int(rng.integers(0, 6))
        scores, masks = rng.permutation(number) / 10, random_masks(rng, number)
        outputs[i] = model_output(random_boxes(rng, number), scores, [0] * number, masks)
        best = masks[scores.argmax()] if number else np.zeros(SIZE, dtype=bool)
        found, right = (
            set(zip(*best.nonzero(), strict=True)),
            set(zip(*gt_mask.nonzero(), strict=True)),
        )
        areas.append((len(found & right), len(found | right)))
    results = evaluate(cfg, register(records, evaluator_type="refcoco"), outputs)["referring_segm"]
    ious = [both / either for both, either in areas]
    assert results["mIoU"] == pytest.approx(100 * sum(ious) / len(ious))
    both, either = map(sum, zip(*areas, strict=True))
    assert results["oIoU"] == pytest.approx(100 * both / either)
    assert results["P@0.5"] == pytest.approx(100 * sum(iou >= 0.5 for iou in ious) / len(ious))
