"""ATSS: assigns ground truth to anchors (arXiv:1912.02424; glip_reference.md 13.1).

A: anchors of all levels (A_i of level i). G: ground truths of one image. C: candidates.
Boxes are XYXY with inclusive corners in pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glipv2_d2.layers.box_coder import box_centers, pairwise_iou_inclusive

_MIN_DISTANCE_TO_EDGE = 0.01


@dataclass(frozen=True)
class ATSSAssigner:
    """Adaptive training sample selection: a positive IoU threshold per ground truth.

    Attributes:
        topk: candidates per level and ground truth.
    """

    topk: int

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk is {self.topk}; it must be at least 1")

    @torch.no_grad()
    def __call__(self, anchors_per_level: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """
        Args:
            anchors_per_level: (A_i, 4) each.
            gt_boxes: (G, 4); G may be 0.

        Returns:
            (A,) int64: index of the ground truth that each anchor is assigned to, -1 for
            background. Every anchor that is not positive is background; none is ignored.
        """
        anchors = torch.cat(list(anchors_per_level))
        if len(gt_boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)

        ious = pairwise_iou_inclusive(anchors, gt_boxes)
        candidates = self._nearest_anchors(anchors_per_level, gt_boxes)
        candidate_ious = ious.gather(0, candidates)
        # torch.std divides by C - 1, as GLIP and the authors of ATSS do.
        thresholds = candidate_ious.mean(dim=0) + candidate_ious.std(dim=0)
        is_positive = (candidate_ious >= thresholds) & _centers_inside(
            anchors[candidates], gt_boxes
        )

        # An anchor that is positive for several objects is assigned to the largest IoU.
        positives = torch.zeros_like(ious, dtype=torch.bool).scatter_(0, candidates, is_positive)
        best_ious, matched_idxs = ious.masked_fill(~positives, -1).max(dim=1)
        return matched_idxs.masked_fill(best_ious < 0, -1)

    def _nearest_anchors(self, anchors_per_level: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """(C, G) int64: the anchors of each level with the centres nearest to each ground truth."""
        gt_centers = box_centers(gt_boxes)
        candidates, first_of_level = [], 0
        for anchors in anchors_per_level:
            offsets = box_centers(anchors)[:, None] - gt_centers
            distances = offsets.square().sum(dim=-1).sqrt()
            nearest = distances.topk(min(self.topk, len(anchors)), dim=0, largest=False).indices
            candidates.append(nearest + first_of_level)
            first_of_level += len(anchors)
        return torch.cat(candidates)


def _centers_inside(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Whether the centres of anchors (C, G, 4) lie inside the ground truths (G, 4), (C, G) bool."""
    centers = box_centers(anchors)
    distances = torch.cat([centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers], dim=-1)
    return distances.amin(dim=-1) > _MIN_DISTANCE_TO_EDGE
