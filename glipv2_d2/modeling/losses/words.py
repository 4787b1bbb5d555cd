"""L_mlm and the loss of captions: which word stands there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.modeling.losses.across_gpus import count_per_gpu
from glipv2_d2.modeling.losses.precision import full_precision


def word_loss(logits: Tensor, word_ids: Tensor) -> Tensor:
    """Cross-entropy averaged over the words that all GPUs guess.

    Args:
        logits: (K, vocabulary) of the K words that this process guesses.
        word_ids: (K,) int64, what stands there.

    Returns:
        Scalar; 0, connected to ``logits``, where no word is guessed.
    """
    logits = full_precision(logits)
    num_words = count_per_gpu(len(word_ids), like=logits)
    return F.cross_entropy(logits, word_ids, reduction="sum") / num_words
