"""L_loc: the box loss of positive anchors and their centerness targets.

K: positive anchors of the batch. Boxes and anchors are XYXY with inclusive corners in pixels of the
network input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from glipv2_d2.layers.box_coder import box_centers


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - generalised IoU (https://arxiv.org/abs/1902.09630) of box pairs.

    The corners are taken as they are, a box being x2 - x1 wide, although the anchors and the box
    coder count inclusive pixels (GLIP's rule). A prediction with x2 < x1 or y2 < y1 has no area.

    Args:
        pred: (K, 4).
        target: (K, 4).

    Returns:
        (K,), 0..2.
    """
    top_left, bottom_right = pred.split(2, dim=-1)
    pred = torch.cat([top_left, torch.maximum(top_left, bottom_right)], dim=-1)
    return generalized_box_iou_loss(pred, target, reduction="none", eps=1e-7)


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Centerness of the anchors in their boxes (FCOS, https://arxiv.org/abs/1904.01355, eqn. 3).

    Args:
        anchors: (K, 4).
        boxes: (K, 4), the box of each anchor.

    Returns:
        (K,): 1 for an anchor centred in its box, 0 for one centred on an edge or outside.
    """
    centers = box_centers(anchors)
    # Per axis the distances to both edges, (K, 2) each.
    to_start, to_end = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(to_start, to_end) / torch.maximum(to_start, to_end)
    return ratios.clamp(min=0).prod(dim=-1).sqrt()


def box_loss(pred: Tensor, target: Tensor, weights: Tensor, normalizer: Tensor | float) -> Tensor:
    """Weighted sum of the GIoU losses of box pairs, over a normaliser.

    Args:
        pred: (K, 4).
        target: (K, 4).
        weights: (K,), the centerness targets: central anchors count most.
        normalizer: the sum of the weights (averaged over GPUs).

    Returns:
        Scalar; 0, still connected to ``pred``, for no boxes.
    """
    return (weights * giou_loss(pred, target)).sum() / normalizer
