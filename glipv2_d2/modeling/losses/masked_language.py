"""L_mlm: which words were masked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.modeling.losses.across_gpus import count_per_gpu
from glipv2_d2.modeling.losses.precision import full_precision


def masked_language_loss(logits: Tensor, word_ids: Tensor) -> Tensor:
    """Cross-entropy averaged over the masked words of all GPUs.

    Args:
        logits: (K, vocabulary) of the K masked words of this process.
        word_ids: (K,) int64, what stood there.

    Returns:
        Scalar; 0, connected to ``logits``, where no word is masked.
    """
    logits = full_precision(logits)
    num_words = count_per_gpu(len(word_ids), like=logits)
    return F.cross_entropy(logits, word_ids, reduction="sum") / num_words
