import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glipv2_d2.layers.box_coder import BoxCoder
from glipv2_d2.modeling.anchors import AnchorGenerator
from glipv2_d2.modeling.assigner import ATSSAssigner

GOLDEN = Path(__file__).parents[1] / "assets" / "tiny_T_s0"
GOLDEN_CASES = [("plain_one", 0), ("plain_two", 0), ("plain_two", 1)]


def anchors_for(height: int, width: int) -> list[Tensor]:
    strides = (8, 16, 32, 64, 128)
    features = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]
    return AnchorGenerator(strides, 8.0)(features)


@pytest.mark.parametrize(("case", "image"), GOLDEN_CASES)
def test_assignment_is_the_references(case: str, image: int) -> None:
    gt = json.loads((GOLDEN / "meta.json").read_text())["train"][case]["gt"][image]
    golden = np.load(GOLDEN / "golden_train.npz")
    gt_boxes, gt_labels = torch.tensor(gt["boxes"]), torch.tensor(gt["labels"])
    anchors_per_level = anchors_for(224, 320)

    matched_idxs = ATSSAssigner(topk=9)(anchors_per_level, gt_boxes)

    positive = matched_idxs >= 0
    labels = torch.where(positive, gt_labels[matched_idxs], 0)
    assert labels.equal(torch.from_numpy(golden[f"{case}/assign{image}/labels"]))
    deltas = BoxCoder().encode(
        gt_boxes[matched_idxs[positive]], torch.cat(anchors_per_level)[positive]
    )
    expected = torch.from_numpy(golden[f"{case}/assign{image}/reg_targets_pos"])
    torch.testing.assert_close(deltas, expected, atol=2e-5, rtol=0)


def atss_with_loops(anchors_per_level: list[Tensor], gt_boxes: Tensor, topk: int) -> list[int]:
    """The paper's algorithm 1 with loops over Python numbers."""
    levels = [anchors.tolist() for anchors in anchors_per_level]
    anchors = [anchor for level in levels for anchor in level]

    def center(box: list[float]) -> tuple[float, float]:
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    def iou(a: list[float], b: list[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0]) + 1
        height = min(a[3], b[3]) - max(a[1], b[1]) + 1
        areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
        shared = max(width, 0) * max(height, 0)
        return shared / (sum(areas) - shared)

    best = [(0.0, -1)] * len(anchors)
    for g, gt in enumerate(gt_boxes.tolist()):
        candidates, first = [], 0
        for level in levels:
            order = sorted(range(len(level)), key=lambda i: np.hypot(
                center(level[i])[0] - center(gt)[0], center(level[i])[1] - center(gt)[1]
            ))  # fmt: skip
            candidates += [first + i for i in order[:topk]]
            first += len(level)
        ious = [iou(anchors[i], gt) for i in candidates]
        threshold = np.mean(ious) + np.std(ious, ddof=1)
        for i, overlap in zip(candidates, ious, strict=True):
            x, y = center(anchors[i])
            inside = min(x - gt[0], y - gt[1], gt[2] - x, gt[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > best[i][0]:
                best[i] = (overlap, g)
    return [g for _, g in best]


@pytest.mark.parametrize("topk", [1, 2, 9])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_that_of_the_papers_algorithm(seed: int, topk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Overlapping boxes of random sizes: no ties in distance, several matches per anchor.
    top_left = torch.rand(12, 2, generator=generator) * 120
    size = torch.rand(12, 2, generator=generator) * 90 + 5
    gt_boxes = torch.cat([top_left, top_left + size], dim=1)
    anchors_per_level = anchors_for(160, 224)
    matched_idxs = ATSSAssigner(topk)(anchors_per_level, gt_boxes)
    assert matched_idxs.tolist() == atss_with_loops(anchors_per_level, gt_boxes, topk)


def test_the_threshold_uses_the_unbiased_standard_deviation() -> None:
    # Concentric anchors with IoUs of width / 100: mean 0.376, standard deviation 0.504 (biased
    # 0.451), so 0.85 lies below the threshold (above the biased one).
    widths = torch.tensor([1.0, 1.0, 1.0, 85.0, 100.0])
    first, edge = (100 - widths) / 2, torch.zeros(5)
    anchors = torch.stack([first, edge, first + widths - 1, edge + 99], dim=1)
    matched_idxs = ATSSAssigner(topk=9)([anchors], torch.tensor([[0.0, 0.0, 99.0, 99.0]]))
    assert matched_idxs.tolist() == [-1, -1, -1, -1, 0]


def test_an_image_without_ground_truth_is_all_background() -> None:
    matched_idxs = ATSSAssigner(topk=9)(anchors_for(64, 64), torch.zeros(0, 4))
    assert matched_idxs.dtype == torch.int64
    assert matched_idxs.tolist() == [-1] * (64 + 16 + 4 + 1 + 1)


def test_an_anchor_with_several_matches_is_assigned_to_the_box_of_highest_iou() -> None:
    anchors_per_level = anchors_for(128, 128)
    tight, loose = [20.3, 20.1, 84.2, 84.4], [10.3, 10.1, 94.2, 94.4]
    alone = ATSSAssigner(topk=9)(anchors_per_level, torch.tensor([loose]))
    both = ATSSAssigner(topk=9)(anchors_per_level, torch.tensor([loose, tight]))
    assert ((alone == 0) & (both == 1)).any()


def test_all_anchors_of_a_level_with_fewer_than_topk_are_candidates() -> None:
    gt_boxes = torch.tensor([[3.3, 5.1, 40.7, 50.2]])
    assert (ATSSAssigner(topk=1000)(anchors_for(64, 64), gt_boxes) == 0).any()
