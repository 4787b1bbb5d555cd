"""The losses of the one-stage grounding head: L_intra + L_loc.

N: images. A: anchors of all levels (A_i of level i). T: tokens. K: positive anchors of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import nonzero_tuple
from torch import Tensor

from glipv2_d2.layers.box_coder import BoxCoder
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.losses.distributed import mean_over_gpus
from glipv2_d2.modeling.losses.grounding import token_focal_loss
from glipv2_d2.modeling.losses.localization import box_loss, centerness_targets
from glipv2_d2.structures import DensePredictions, DenseTargets

# Positive anchors lie inside their boxes, so a smaller sum of weights means that there are none.
_MIN_SUM_OF_CENTERNESS = 1e-6


def grounding_losses(
    predictions: DensePredictions,
    targets: DenseTargets,
    token_mask: Tensor,
    *,
    box_coder: BoxCoder,
    alpha: float,
    gamma: float,
    token_weight: float,
    box_weight: float,
    centerness_weight: float,
) -> dict[str, Tensor]:
    """Token, box and centerness loss of a batch, weighted, in float32 also under autocast.

    Token and centerness losses are sums over the number of positive anchors; the box loss is the
    mean over positives weighted by their centerness. Both counts are averaged over GPUs, so that
    averaged gradients are those of one large batch. Without any positive, box and centerness losses
    are 0 and still reach every parameter (distributed training waits for all of them).

    Args:
        predictions: raw outputs of the head.
        targets: their training targets.
        token_mask: (N, T) bool, False on padding.
        box_coder: codes the predicted and target deltas.
        alpha, gamma: of the token focal loss.
        token_weight, box_weight, centerness_weight: factors of the three losses.

    Returns:
        ``loss_token``, ``loss_box``, ``loss_centerness``: scalars.
    """
    positive = nonzero_tuple(targets.matched_idxs >= 0)
    anchors = torch.cat(predictions.anchors_per_level)[positive[1]]
    gt_boxes = box_coder.decode(targets.box_deltas[positive], anchors)
    gt_centerness = centerness_targets(anchors, gt_boxes)
    num_positives, sum_of_centerness = mean_over_gpus(
        torch.stack([gt_centerness.new_tensor(len(anchors)), gt_centerness.sum()])
    )
    num_positives = num_positives.clamp(min=1)

    pred_deltas = full_precision(torch.cat(predictions.box_deltas_per_level, dim=1)[positive])
    pred_centerness = full_precision(torch.cat(predictions.centerness_per_level, dim=1)[positive])
    loss_token = _token_loss(predictions, targets, token_mask, alpha, gamma) / num_positives
    loss_box = box_loss(
        box_coder.decode(pred_deltas, anchors),
        gt_boxes,
        weights=gt_centerness,
        normalizer=sum_of_centerness.clamp(min=_MIN_SUM_OF_CENTERNESS),
    )
    loss_centerness = (
        F.binary_cross_entropy_with_logits(pred_centerness, gt_centerness, reduction="sum")
        / num_positives
    )
    return {
        "loss_token": token_weight * loss_token,
        "loss_box": box_weight * loss_box,
        "loss_centerness": centerness_weight * loss_centerness,
    }


def _token_loss(
    predictions: DensePredictions,
    targets: DenseTargets,
    token_mask: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Sum over all levels, one by one: concatenating the logits would copy the largest tensor."""
    logits_per_level = predictions.token_logits_per_level
    targets_per_level = targets.token_targets.split([x.shape[1] for x in logits_per_level], dim=1)
    losses = [
        token_focal_loss(level_logits, level_targets, token_mask, alpha, gamma)
        for level_logits, level_targets in zip(logits_per_level, targets_per_level, strict=True)
    ]
    return torch.stack(losses).sum()
