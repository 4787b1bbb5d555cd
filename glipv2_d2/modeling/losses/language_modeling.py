"""L_mlm and the caption loss: cross-entropy of predicted tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.losses.distributed import count_per_gpu


def token_prediction_loss(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Cross-entropy averaged over the predicted tokens of all GPUs.

    Args:
        logits: (K, vocabulary) of the K predictions of this process.
        target_ids: (K,) int64, the true tokens.

    Returns:
        Scalar; 0, connected to ``logits``, without predictions.
    """
    return mean_over_tokens(F.cross_entropy(full_precision(logits), target_ids, reduction="none"))


def mean_over_tokens(losses: Tensor) -> Tensor:
    """(K,) losses of this process's tokens, averaged over the tokens of all GPUs."""
    return losses.sum() / count_per_gpu(len(losses), like=losses)
