"""Regions of phrases, against worked examples and sets of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.phrase_data import SIZE, model_output, random_boxes, random_masks, record
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.mask_iou import union_of_boxes

Register = Callable[..., str]
Pixels = set[tuple[int, int]]


def evaluate(cfg: CfgNode, dataset: str, outputs: dict[Any, Any]) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(cfg, dataset)
    evaluator.reset()
    for reference in DatasetCatalog.get(dataset):
        evaluator.process([reference], [outputs[reference["image_id"]]])
    return evaluator.evaluate()


def rectangles(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def pixels(mask: np.ndarray) -> Pixels:
    return set(zip(*(axis.tolist() for axis in mask.nonzero()), strict=True))


LEFT, RIGHT = (0, 0, 10, 10), (20, 0, 30, 10)
POLYGONS = [[[0, 0, 10, 0, 10, 10, 0, 10]], [[20, 0, 30, 0, 30, 10, 20, 10]]]


def test_the_region_is_the_union_of_detections_above_the_threshold(
    cfg: CfgNode, register: Register
) -> None:
    records = [record(0, {"cups": [LEFT, RIGHT]}, masks={"cups": POLYGONS})]
    dataset = register(records, evaluator_type="phrasecut")
    # Both cups, overlapping outputs for one of them, and a wrong region below the threshold.
    boxes = [LEFT, LEFT, RIGHT, (0, 12, 30, 20)]
    output = model_output(boxes, [0.9, 0.8, 0.5, 0.4], [0] * 4, rectangles(*boxes))
    results = evaluate(cfg, dataset, {0: output})
    for task in ("phrasecut_segm", "phrasecut_bbox"):
        assert (results[task]["mIoU"], results[task]["cIoU"]) == (100, 100)
        # 200 of 200 + 240 pixels; only one of the two cups.
        assert results[task]["mIoU-0.4"] == pytest.approx(100 * 200 / 440)
        assert results[task]["mIoU-0.6"] == pytest.approx(50)


def test_the_best_detection_is_always_included(cfg: CfgNode, register: Register) -> None:
    records = [record(0, {"cups": [LEFT, RIGHT]}, masks={"cups": POLYGONS})]
    dataset = register(records, evaluator_type="phrasecut")
    output = model_output([RIGHT, LEFT], [0.1, 0.2], [0, 0], rectangles(RIGHT, LEFT))
    assert evaluate(cfg, dataset, {0: output})["phrasecut_segm"]["mIoU"] == pytest.approx(50)


def test_mean_and_cumulative_iou_weight_phrases_differently(
    cfg: CfgNode, register: Register
) -> None:
    records = [
        record(0, {"cups": [LEFT, RIGHT]}, masks={"cups": POLYGONS}),
        record(1, {"a pin": [(0, 0, 2, 5)]}, masks={"a pin": [[[0, 0, 2, 0, 2, 5, 0, 5]]]}),
    ]
    dataset = register(records, evaluator_type="phrasecut")
    nothing = model_output([], [], [], rectangles())
    both = model_output([LEFT, RIGHT], [0.9, 0.9], [0, 0], rectangles(LEFT, RIGHT))
    results = evaluate(cfg, dataset, {0: both, 1: nothing})["phrasecut_segm"]
    assert results["mIoU"] == pytest.approx(50)
    assert results["cIoU"] == pytest.approx(100 * 200 / 210)


def test_without_predicted_masks_boxes_are_compared_with_boxes(
    cfg: CfgNode, register: Register
) -> None:
    """The masks of the truth fill half of their boxes, which is no mistake of a box."""
    triangles = [[[0, 0, 10, 0, 0, 10]], [[20, 0, 30, 0, 20, 10]]]
    records = [record(0, {"cups": [LEFT, RIGHT]}, masks={"cups": triangles})]
    dataset = register(records, evaluator_type="phrasecut")
    results = evaluate(cfg, dataset, {0: model_output([LEFT, RIGHT], [0.9, 0.9], [0, 0])})
    assert results.keys() == {"phrasecut_bbox"}
    assert results["phrasecut_bbox"]["mIoU"] == 100


def test_iou_without_ground_truth_is_nan(cfg: CfgNode, register: Register) -> None:
    dataset = register([record(0, {"a cup": []})], evaluator_type="phrasecut")
    results = evaluate(cfg, dataset, {0: model_output([LEFT], [0.5], [0])})
    assert math.isnan(results["phrasecut_bbox"]["mIoU"])


def test_an_invalid_threshold_raises_an_error(cfg: CfgNode, register: Register) -> None:
    cfg.TEST.PHRASECUT_SCORE_THRESH = 50.0
    dataset = register([record(0, {"cups": [LEFT]})], evaluator_type="phrasecut")
    with pytest.raises(ValueError, match=r"score_thresh is 50.*TEST\.PHRASECUT_SCORE_THRESH"):
        build_evaluator(cfg, dataset)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_pixel_sets(seed: int, cfg: CfgNode, register: Register) -> None:
    rng = np.random.default_rng(seed)
    cfg.TEST.PHRASECUT_SCORE_THRESH = 0.35
    records, outputs, areas = [], {}, []
    for i in range(20):
        gt_masks, number = random_masks(rng, rng.integers(1, 4)), int(rng.integers(0, 6))
        encoded = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in gt_masks]
        truth = {"it": random_boxes(rng, len(gt_masks))}
        records.append(record(i, truth, masks={"it": encoded}))
        scores, masks = rng.permutation(10)[:number] / 10, random_masks(rng, number)
        outputs[i] = model_output(random_boxes(rng, number), scores, [0] * number, masks)
        right: Pixels = set().union(*map(pixels, gt_masks))
        found: Pixels = set()
        for score, mask in zip(scores, masks, strict=True):
            if score >= 0.35 or score == max(scores):
                found |= pixels(mask)
        areas.append((len(found & right), len(found | right)))
    results = evaluate(cfg, register(records, evaluator_type="phrasecut"), outputs)
    ious = [both / either for both, either in areas]
    both, either = map(sum, zip(*areas, strict=True))
    assert results["phrasecut_segm"]["mIoU"] == pytest.approx(100 * sum(ious) / len(ious))
    assert results["phrasecut_segm"]["cIoU"] == pytest.approx(100 * both / either)


corners = st.floats(-5, 40, allow_nan=False, width=32)


@settings(max_examples=30)
@given(st.lists(st.tuples(corners, corners, corners, corners), max_size=4))
def test_a_box_covers_the_pixels_whose_centres_are_inside(
    boxes: list[tuple[float, float, float, float]],
) -> None:
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    found = union_of_boxes(np.array(ordered).reshape(-1, 4), SIZE)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            held = any(x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2 for x1, y1, x2, y2 in ordered)
            assert found[y, x] == held
