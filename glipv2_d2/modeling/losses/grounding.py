"""L_intra: the alignment loss of anchors and the tokens of their own prompt.

N: images. A: anchors of all levels. G: ground truths of one image. T: tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from glipv2_d2.layers.dtypes import full_precision


def token_targets(matched_idxs: Tensor, positive_map_per_gt: Tensor, max_tokens: int) -> Tensor:
    """Token targets of the anchors of one image.

    GLIP marks background on the last token of a prompt of maximal length (index 255 of 256;
    glip_reference.md 13.2). Prompts are trimmed to their length here, so the mark exists only
    where a prompt fills the limit: only there does GLIP's token mask let it enter the loss.

    Args:
        matched_idxs: (A,) int64, the ground truth that an anchor is matched to, or -1.
        positive_map_per_gt: (G, T), non-zero on the tokens that spell the ground truth.
        max_tokens: the limit of tokens of a prompt.

    Returns:
        (A, T) float32, 0 or 1.
    """
    num_tokens = positive_map_per_gt.shape[1]
    background = torch.zeros(1, num_tokens, device=positive_map_per_gt.device)
    if num_tokens == max_tokens:
        background[:, -1] = 1
    # Background is the last row: index -1.
    return torch.cat([(positive_map_per_gt > 0).float(), background])[matched_idxs]


def token_focal_loss(
    logits: Tensor, targets: Tensor, token_mask: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Sum of binary focal losses (https://arxiv.org/abs/1708.02002) of anchors and valid tokens.

    Args:
        logits: (N, A, T); computed in at least float32, also under autocast.
        targets: (N, A, T), positive where non-zero; without gradient.
        token_mask: (N, T) bool, False on padding, whose logits are ignored.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing parameter: discounts well classified tokens.

    Returns:
        Scalar, not normalised.
    """
    return _MaskedFocalLoss.apply(
        full_precision(logits), targets != 0, token_mask[:, None], alpha, gamma
    )


class _MaskedFocalLoss(torch.autograd.Function):
    """The focal loss with a hand-written gradient.

    The logits are the largest tensor of the head. Autograd would keep five tensors of their size
    for the backward pass (``fvcore.nn.sigmoid_focal_loss``: eight); this keeps one, the gradient,
    and is faster.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, positive: Tensor, valid: Tensor, alpha: float, gamma: float
    ) -> Tensor:
        # A negative with logit z and a positive with logit -z are equally wrong: with
        # p = sigmoid(z) both cost p^gamma * softplus(z).
        z = torch.where(positive, -logits, logits).masked_fill_(~valid, 0)
        p = z.sigmoid()
        cross_entropy = F.softplus(z)
        weights = torch.where(positive, alpha * valid, (1 - alpha) * valid).to(logits.dtype)
        weights.mul_(p.pow(gamma))
        if ctx.needs_input_grad[0]:
            # softplus' = p and p' = p (1 - p), so the slope in z is p^gamma (p + gamma (1 - p) CE).
            slope = (1 - p).mul_(cross_entropy).mul_(gamma).add_(p).mul_(weights)
            ctx.save_for_backward(torch.where(positive, -slope, slope))
        return cross_entropy.mul_(weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None
