"""L_mlm and the loss of captions: which word stands there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.losses.across_gpus import count_per_gpu


def word_loss(logits: Tensor, word_ids: Tensor) -> Tensor:
    """Cross-entropy averaged over the words that all GPUs guess.

    Args:
        logits: (K, vocabulary) of the K words that this process guesses.
        word_ids: (K,) int64, what stands there.

    Returns:
        Scalar; 0, connected to ``logits``, where no word is guessed.
    """
    return mean_over_words(F.cross_entropy(full_precision(logits), word_ids, reduction="none"))


def mean_over_words(losses: Tensor) -> Tensor:
    """(K,) losses of the words that this process guesses, averaged over those of all GPUs."""
    return losses.sum() / count_per_gpu(len(losses), like=losses)
