"""From the outputs of the head to detections, masks and the results of an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.layers.box_coder import BoxCoder, pairwise_iou_inclusive, to_inclusive
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.postprocess import (
    ChunkDetections,
    DetectionsPerImage,
    PostprocessSettings,
    detect_labels,
    image_results,
    keep_topk,
    nms_inclusive,
    paste_masks,
    to_instances,
)
from glipv2_d2.structures import DensePredictions, Prompt, Query, QueryKind

ASSETS = Path(__file__).parents[1] / "assets"
LEVELS = ("p3", "p4", "p5", "p6", "p7")
GLIP = PostprocessSettings(
    score_thresh=0.05,
    pre_nms_topk=1000,
    nms_thresh=0.6,
    detections_per_prompt=100,
    aggregation="mean",
)
GOLDEN_SETTINGS = {
    "one/": GLIP,
    "one/aggMAX_": replace(GLIP, aggregation="max"),
    "one/mdetrMEAN_": GLIP,
    "one/mdetrPOWER_": replace(GLIP, aggregation="power"),
    "one/th0.05_k30_nms0.6_": replace(GLIP, detections_per_prompt=30),
    "one/th0.2_k1000_nms0.3_": replace(
        GLIP, score_thresh=0.2, detections_per_prompt=1000, nms_thresh=0.3
    ),
}


def detect(
    predictions: DensePredictions,
    positive_maps: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    settings: PostprocessSettings,
    negatives_per_image: Sequence[Sequence[int]] | None = None,
) -> list[DetectionsPerImage]:
    """Detections of every image from the raw outputs of the head."""
    negatives_per_image = negatives_per_image or [()] * len(positive_maps)
    return [
        detect_labels(
            LabelScores.of_image(predictions, index, positive_map, settings.aggregation),
            image_size,
            settings,
            BoxCoder(),
            negatives,
        )
        for index, (positive_map, image_size, negatives) in enumerate(
            zip(positive_maps, image_sizes, negatives_per_image, strict=True)
        )
    ]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    arrays = np.load(ASSETS / "tiny_T_s0" / "golden_eval.npz")
    parts = ("head/", "anchors/", "det0/", "det1/")
    return {k: torch.from_numpy(arrays[k]) for k in arrays if any(part in k for part in parts)}


@pytest.fixture(scope="module")
def positive_map() -> Tensor:
    meta = json.loads((ASSETS / "tiny_T_s0" / "meta.json").read_text())
    num_tokens = meta["logits_first_n_tokens"]
    result = torch.zeros(len(meta["categories"]), num_tokens, dtype=torch.bool)
    for label, tokens in meta["label_to_tokens"].items():
        result[int(label) - 1, tokens] = True
    return result


def golden_predictions(golden: dict[str, Tensor], images: str) -> DensePredictions:
    """The stored outputs of the reference's head for ``one`` image or ``two``."""

    def stored(branch: str) -> list[Tensor]:
        maps = [golden[f"{images}/head/{branch}/{level}"] for level in LEVELS]
        return [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps]

    return DensePredictions(
        token_logits_per_level=[
            golden[f"{images}/head/dot_product_logits/{level}"] for level in LEVELS
        ],
        box_deltas_per_level=stored("bbox_reg"),
        centerness_per_level=[x[..., 0] for x in stored("centerness")],
        anchors_per_level=[golden[f"one/anchors/{level}"] for level in LEVELS],
    )


def assert_same_set(
    boxes: Tensor, scores: Tensor, labels: Tensor, golden: dict[str, Tensor], key: str
) -> None:
    """Detections and stored ones match one to one in label, score and box."""
    expected_boxes, expected_scores = golden[f"{key}/boxes"], golden[f"{key}/scores"]
    expected_labels = golden[f"{key}/labels"] - 1
    assert len(boxes) == len(expected_boxes)
    is_match = (
        (labels[:, None] == expected_labels)
        & ((scores[:, None] - expected_scores).abs() < 1e-5)
        & ((boxes[:, None] - expected_boxes).abs().amax(dim=-1) < 2e-3)
    )
    assert (is_match.sum(dim=0) == 1).all()
    assert (is_match.sum(dim=1) == 1).all()


@pytest.mark.parametrize("prefix", GOLDEN_SETTINGS)
def test_detections_are_the_references_under_every_setting(
    golden: dict[str, Tensor], positive_map: Tensor, prefix: str
) -> None:
    (found,) = detect(
        golden_predictions(golden, "one"),
        (positive_map,),
        [(200, 300)],
        GOLDEN_SETTINGS[prefix],
    )
    assert_same_set(found.boxes, found.scores, found.labels, golden, f"{prefix}det0")


def test_images_of_a_batch_are_clipped_to_their_own_sizes(
    golden: dict[str, Tensor], positive_map: Tensor
) -> None:
    predictions = golden_predictions(golden, "two")
    sizes = [(200, 300), (200, 200)]
    for i, found in enumerate(detect(predictions, (positive_map,) * 2, sizes, GLIP)):
        assert_same_set(found.boxes, found.scores, found.labels, golden, f"two/det{i}")


def test_results_in_the_original_image_are_the_references(golden: dict[str, Tensor]) -> None:
    detections = DetectionsPerImage(
        golden["one/det0/boxes"],
        golden["one/det0/scores"],
        golden["one/det0/labels"] - 1,
        torch.zeros_like(golden["one/det0/labels"]),
    )
    width, height = golden["one/resized_det0/size_wh"].tolist()
    instances = to_instances(detections, (200, 300), (height, width), range(7))
    assert_same_set(
        to_inclusive(instances.pred_boxes.tensor),
        instances.scores,
        instances.pred_classes,
        golden,
        "one/resized_det0",
    )


def test_a_location_is_the_index_of_the_anchor_of_a_box(
    golden: dict[str, Tensor], positive_map: Tensor
) -> None:
    predictions = golden_predictions(golden, "one")
    (found,) = detect(predictions, (positive_map,), [(10**6, 10**6)], GLIP)
    deltas = torch.cat([level[0] for level in predictions.box_deltas_per_level])
    anchors = torch.cat(predictions.anchors_per_level)
    decoded = BoxCoder().decode(deltas, anchors).clamp(min=0)
    assert len(found.locations.unique()) > 10
    torch.testing.assert_close(decoded[found.locations], found.boxes)


def with_labels(boxes: Tensor, labels: list[int]) -> DetectionsPerImage:
    locations = torch.arange(len(labels))
    ids = torch.tensor(labels, dtype=torch.int64)
    return DetectionsPerImage(boxes, torch.ones(len(labels)), ids, locations)


def test_labels_become_the_callers_classes() -> None:
    found = with_labels(torch.zeros(3, 4), [1, 0, 1])
    assert to_instances(found, (9, 9), (9, 9), [40, 7]).pred_classes.tolist() == [7, 40, 7]


def test_corners_are_scaled_before_they_become_exclusive() -> None:
    found = with_labels(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), [0])
    instances = to_instances(found, (100, 100), (300, 200), [0])
    assert instances.image_size == (300, 200)
    assert instances.pred_boxes.tensor.tolist() == [[20.0, 60.0, 61.0, 121.0]]


# Masks.


def detections_with_masks(boxes: list[list[float]], masks: Tensor) -> DetectionsPerImage:
    return replace(with_labels(torch.tensor(boxes), [0] * len(boxes)), masks=masks)


def pasted(
    detections: DetectionsPerImage, size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    return paste_masks(to_instances(detections, size, output_size, [0]), size).pred_masks


@pytest.mark.parametrize(
    ("output_size", "rows", "columns"),
    [((40, 60), (10, 30), (20, 30)), ((80, 60), (20, 60), (20, 30)), ((20, 30), (5, 15), (10, 15))],
    ids=["same size", "twice the height", "half the size"],
)
def test_a_full_mask_covers_the_pixels_of_its_box(
    output_size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Rows 10 to 29 and columns 20 to 29 of 40 x 60."""
    found = detections_with_masks([[20.0, 10.0, 29.0, 29.0]], torch.ones(1, 28, 28))
    expected = torch.zeros(output_size, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(pasted(found, (40, 60), output_size)[0], expected)


def interpolate(mask: np.ndarray, row: float, column: float) -> float:
    """Bilinear interpolation at a position in cells, 0 at the centre of the first; 0 outside."""
    value = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1]:
                value += mask[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


@pytest.mark.parametrize("output_size", [(20, 24), (33, 50), (11, 13)])
def test_pasting_samples_the_mask_at_the_centre_of_every_pixel(
    output_size: tuple[int, int],
) -> None:
    size, x1, y1, x2, y2 = (20, 24), 3.3, 2.0, 18.9, 16.25  # the corners are inclusive
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pasted(detections_with_masks([[x1, y1, x2, y2]], mask), size, output_size)[0]
    scale_y, scale_x = (target / source for target, source in zip(output_size, size, strict=True))
    for row in range(output_size[0]):
        for column in range(output_size[1]):
            # The centre of the pixel in the network input, then in the grid of the box.
            y, x = (row + 0.5) / scale_y, (column + 0.5) / scale_x
            i, j = (y - y1) / (y2 + 1 - y1) * 8 - 0.5, (x - x1) / (x2 + 1 - x1) * 8 - 0.5
            value = interpolate(mask[0].numpy(), i, j)
            if abs(value - 0.5) > 1e-3:
                assert bool(found[row, column]) == (value > 0.5)


def test_without_detections_there_are_no_masks() -> None:
    none = detections_with_masks([], torch.zeros(0, 28, 28))
    none = replace(none, boxes=torch.zeros(0, 4))
    masks = pasted(none, (20, 30), (40, 60))
    assert (masks.shape, masks.dtype) == ((0, 40, 60), torch.bool)


def test_selected_detections_keep_their_masks() -> None:
    masks = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    found = detections_with_masks([[0.0, 0.0, 1.0, 1.0]] * 3, masks)
    assert found[torch.tensor([2, 0])].masks[:, 0, 0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("limit", "kept"), [(0, []), (1, [0.9]), (2, [0.9]), (3, [0.9, 0.5, 0.5]), (9, [0.9, 0.5, 0.5])]
)
def test_keep_topk_drops_detections_below_the_best_of_all(limit: int, kept: list[float]) -> None:
    def scored(*scores: float) -> DetectionsPerImage:
        found = with_labels(torch.zeros(len(scores), 4), [0] * len(scores))
        return replace(found, scores=torch.tensor(scores))

    best = keep_topk(scored(0.5, 0.9, 0.5), [scored(0.7), scored(0.1)], limit)
    assert sorted(best.scores.tolist(), reverse=True) == pytest.approx(kept)


# Small predictions: one level of anchors, one token per label.


def logit(probability: float | Tensor) -> Tensor:
    return torch.as_tensor(probability, dtype=torch.float32).logit()


def predictions_of(
    token_probs: list[list[float]], centerness: list[float], anchors: list[list[float]]
) -> DensePredictions:
    return DensePredictions(
        [logit(torch.tensor(token_probs))[None]],
        [torch.zeros(1, len(anchors), 4)],
        [logit(torch.tensor(centerness))[None]],
        [torch.tensor(anchors)],
    )


def detect_one(predictions: DensePredictions, **settings: Any) -> DetectionsPerImage:
    num_tokens = predictions.token_logits_per_level[0].shape[-1]
    (found,) = detect(
        predictions,
        (torch.eye(num_tokens, dtype=torch.bool),),
        [(100, 100)],
        replace(GLIP, **settings),
    )
    return found


def boxes_apart(count: int) -> list[list[float]]:
    return [[10.0 * i, 0.0, 10.0 * i + 5, 5.0] for i in range(count)]


def test_the_threshold_is_applied_before_centerness() -> None:
    # 0.06 passes although its final score is 0.0245; 0.04 does not although its final one is 0.2.
    found = detect_one(predictions_of([[0.06], [0.04]], [0.01, 0.999], boxes_apart(2)))
    torch.testing.assert_close(found.scores, torch.tensor([0.06 * 0.01]).sqrt())


def test_candidates_are_ranked_by_the_product_with_centerness() -> None:
    found = detect_one(predictions_of([[0.9], [0.5]], [0.1, 0.9], boxes_apart(2)), pre_nms_topk=1)
    torch.testing.assert_close(found.scores, torch.tensor([0.45]).sqrt())


def test_candidates_are_limited_per_level() -> None:
    one = predictions_of([[0.9], [0.8]], [0.5, 0.5], boxes_apart(2))
    two = DensePredictions(
        one.token_logits_per_level * 2,
        one.box_deltas_per_level * 2,
        one.centerness_per_level * 2,
        [one.anchors_per_level[0], one.anchors_per_level[0] + 40],
    )
    assert len(detect_one(two, pre_nms_topk=1)) == 2


def test_a_location_may_have_several_labels() -> None:
    found = detect_one(predictions_of([[0.9, 0.8]], [0.5], boxes_apart(1)))
    assert sorted(found.labels.tolist()) == [0, 1]


def test_detections_are_sorted_by_score() -> None:
    found = detect_one(predictions_of([[0.3], [0.9], [0.6]], [0.5] * 3, boxes_apart(3)))
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_ties_with_the_last_detection_are_kept() -> None:
    predictions = predictions_of([[0.9], [0.5], [0.5], [0.4]], [0.5] * 4, boxes_apart(4))
    assert len(detect_one(predictions, detections_per_prompt=2)) == 3


def test_a_label_without_tokens_is_never_detected() -> None:
    predictions = predictions_of([[0.9, 0.9]], [0.9], boxes_apart(1))
    no_tokens = torch.tensor([[True, False], [False, False]])
    (found,) = detect(predictions, (no_tokens,), [(100, 100)], GLIP)
    assert found.labels.tolist() == [0]


def test_boxes_are_clipped_to_the_last_pixel() -> None:
    found = detect_one(predictions_of([[0.9]], [0.9], [[-5.0, -7.0, 200.0, 300.0]]))
    assert found.boxes.tolist() == [[0.0, 0.0, 99.0, 99.0]]


def test_without_candidates_the_results_are_empty() -> None:
    found = detect_one(predictions_of([[0.01]], [0.9], boxes_apart(1)))
    instances = to_instances(found, (100, 100), (50, 50), [0])
    assert len(found) == len(instances) == 0
    assert instances.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_thresh", -0.1),
        ("nms_thresh", 1.5),
        ("pre_nms_topk", 0),
        ("detections_per_prompt", -1),
    ],
)
def test_settings_out_of_range_are_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be"):
        replace(GLIP, **{name: value})


# Non-maximum suppression.


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_thresh: float) -> list[int]:
    """The algorithm box by box."""
    ious = pairwise_iou_inclusive(boxes.double(), boxes.double())
    keep: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not any(labels[i] == labels[j] and ious[i, j] > iou_thresh for j in keep):
            keep.append(i)
    return keep


@pytest.mark.parametrize(("key", "iou_thresh"), [("keep06", 0.6), ("keep03", 0.3)])
def test_suppression_is_the_references(key: str, iou_thresh: float) -> None:
    misc = {k: torch.from_numpy(v) for k, v in np.load(ASSETS / "misc" / "misc.npz").items()}
    keep = nms_inclusive(misc["nms/boxes"], misc["nms/scores"], misc["nms/labels"], iou_thresh)
    assert sorted(keep.tolist()) == misc[f"nms/{key}"].tolist()


@pytest.mark.parametrize("num_labels", [1, 7, 1203])
def test_suppression_equals_the_greedy_algorithm(num_labels: int) -> None:
    generator = torch.Generator().manual_seed(num_labels)
    # Clusters of nearly equal boxes, with their labels at both ends of the range.
    seeds = torch.rand(40, 4, generator=generator) * 600
    boxes = (seeds[:, None] + torch.rand(40, 8, 4, generator=generator) * 25).flatten(0, 1)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] / 4
    scores = torch.rand(len(boxes), generator=generator)
    labels = num_labels - 1 - torch.randint(min(num_labels, 2), (len(boxes),), generator=generator)
    keep = nms_inclusive(boxes, scores, labels, 0.6)
    assert keep.tolist() == greedy_nms(boxes, scores, labels, 0.6)
    assert len(keep) < len(boxes)


def test_an_overlap_that_equals_the_threshold_is_not_suppressed() -> None:
    # With inclusive corners 5 of 10 pixels overlap: IoU 0.5. With exclusive corners it is 4 / 9.
    boxes = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 4.0, 0.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert nms_inclusive(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert nms_inclusive(boxes, scores, labels, 0.49).tolist() == [0]


def test_boxes_of_the_last_of_many_labels_are_not_rounded() -> None:
    # IoU 0.5994. Offset in float32, the boxes of label 1202 would be rounded to eighths: IoU 0.6.
    boxes = torch.tensor([[0.0, 0.0, 99.0, 99.0], [0.0, 0.0, 99.0, 58.94]])
    wide = torch.tensor([[0.0, 0.0, 1332.0, 799.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.tensor([1202, 1202, 0])
    assert nms_inclusive(torch.cat([boxes, wide]), scores, labels, 0.6).tolist() == [0, 1, 2]


def test_nms_accepts_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert nms_inclusive(torch.zeros(0, 4), torch.zeros(0), none, 0.5).tolist() == []


# Negative labels.


@pytest.mark.parametrize("seed", range(4))
def test_a_detection_that_a_negative_beats_is_dropped(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(40, 2, generator=generator) * 30
    anchors = torch.cat([corners, corners + 20], dim=1)
    predictions = predictions_of(
        torch.rand(40, 3, generator=generator).tolist(), [0.5] * 40, anchors.tolist()
    )
    negatives, maps = [[0, 2]], (torch.eye(3, dtype=torch.bool),)
    (alone,) = detect(predictions, maps, [(100, 100)], GLIP)
    (found,) = detect(predictions, maps, [(100, 100)], GLIP, negatives)
    keeping_all = replace(GLIP, nms_thresh=1.0, detections_per_prompt=1000)
    (candidates,) = detect(predictions, maps, [(100, 100)], keeping_all)
    rivals = candidates[candidates.labels != 1]
    expected = []
    for i in range(len(alone)):
        overlaps = pairwise_iou_inclusive(alone.boxes[i : i + 1], rivals.boxes)[0]
        is_beaten = ((overlaps >= 0.6) & (rivals.scores > alone.scores[i])).any()
        if alone.labels[i] == 1 and not is_beaten:
            expected.append(i)
    assert 0 < len(expected) < (alone.labels == 1).sum()
    assert torch.equal(found.boxes, alone.boxes[expected])
    assert torch.equal(found.scores, alone.scores[expected])


def test_negatives_do_not_count_towards_the_limit() -> None:
    predictions = predictions_of([[0.9, 0.0], [0.8, 0.0], [0.0, 0.5]], [0.5] * 3, boxes_apart(3))
    settings = replace(GLIP, detections_per_prompt=1)
    maps = (torch.eye(2, dtype=torch.bool),)
    (found,) = detect(predictions, maps, [(100, 100)], settings, [[0]])
    assert found.labels.tolist() == [1]


def test_a_negative_of_equal_score_suppresses_nothing() -> None:
    predictions = predictions_of([[0.7, 0.7]], [0.5], boxes_apart(1))
    maps = (torch.eye(2, dtype=torch.bool),)
    (found,) = detect(predictions, maps, [(100, 100)], GLIP, [[0]])
    assert found.labels.tolist() == [1]


def test_with_negatives_only_the_results_are_empty() -> None:
    predictions = predictions_of([[0.7]], [0.5], boxes_apart(1))
    maps = (torch.eye(1, dtype=torch.bool),)
    (found,) = detect(predictions, maps, [(100, 100)], GLIP, [[0]])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


# Results of an image: the detections of all its chunks.

IMAGE_SIZE = (40, 60)


def chunk(scores: list[float], class_: int) -> ChunkDetections:
    """Boxes of the only label of a prompt."""
    boxes = torch.tensor([[1.0, 2, 10, 12]]).repeat(len(scores), 1)
    labels = torch.zeros(len(scores), dtype=torch.int64)
    prompt = Prompt("thing", (((0, 5),),), (class_,))
    query = Query(0, QueryKind.DETECT, prompt)
    return ChunkDetections(query, DetectionsPerImage(boxes, torch.tensor(scores), labels, labels))


def scores_by_class(results: dict) -> list[tuple[int, float]]:
    instances = results["instances"]
    pairs = zip(instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    return sorted((class_, round(score, 4)) for class_, score in pairs)


def test_without_localized_queries_there_are_no_instances() -> None:
    assert image_results({}, [], IMAGE_SIZE, limit=100) == {}


def test_boxes_are_in_the_callers_pixels_and_classes() -> None:
    results = image_results(
        {"height": 80, "width": 60}, [chunk([0.5], class_=7)], IMAGE_SIZE, limit=100
    )
    assert results["instances"].pred_classes.tolist() == [7]
    # The corners are scaled, then the last pixel is added.
    assert results["instances"].pred_boxes.tensor.tolist() == [[1, 4, 11, 25]]
    assert results["instances"].image_size == (80, 60)


def test_all_prompts_of_an_image_share_the_limit() -> None:
    first, second = chunk([0.9, 0.2], class_=0), chunk([0.5, 0.1], class_=1)
    assert len(image_results({}, [first], IMAGE_SIZE, limit=1)["instances"]) == 1
    both = image_results({}, [first, second], IMAGE_SIZE, limit=2)
    assert scores_by_class(both) == [(0, pytest.approx(0.9)), (1, pytest.approx(0.5))]
    assert len(image_results({}, [first, second], IMAGE_SIZE, limit=-1)["instances"]) == 4


score_lists = st.lists(st.integers(0, 10**6), max_size=5, unique=True)


@given(st.lists(score_lists, min_size=1, max_size=4), st.integers(0, 6))
def test_keep_topk_drops_only_detections_that_the_result_drops(
    scores_per_chunk: list[list[int]], limit: int
) -> None:
    # All different: ties are broken arbitrarily.
    chunks = [
        chunk([(score * 4 + class_) / 5e6 for score in of_chunk], class_)
        for class_, of_chunk in enumerate(scores_per_chunk)
    ]
    kept: list[ChunkDetections] = []
    for x in chunks:
        earlier = [other.detections for other in kept]
        kept.append(ChunkDetections(x.query, keep_topk(x.detections, earlier, limit)))
    if len(chunks) > 1:
        assert scores_by_class(image_results({}, kept, IMAGE_SIZE, limit)) == scores_by_class(
            image_results({}, chunks, IMAGE_SIZE, limit)
        )
