"""The loss of predicted masks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.losses.distributed import count_per_gpu


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the pixels of all masks of all GPUs (Mask R-CNN's).

    Args:
        logits: (K, S, S), the K masks of this process.
        targets: (K, S, S), 0 or 1.

    Returns:
        Scalar; 0, connected to ``logits``, without masks.
    """
    logits = full_precision(logits)
    num_masks = count_per_gpu(len(logits), like=logits)
    num_pixels = logits.shape[1] * logits.shape[2]
    total = F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum")
    return total / num_pixels / num_masks
