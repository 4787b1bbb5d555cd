"""The loss of answers: binary cross-entropy with soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.losses.distributed import count_per_gpu


def answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Binary cross-entropy, summed over answers and averaged over the questions of all GPUs.

    Args:
        logits: (Q, A), the Q questions of this process.
        scores: (Q, A), 0..1, the soft score of each answer.

    Returns:
        Scalar; 0, connected to ``logits``, without questions.
    """
    logits = full_precision(logits)
    num_questions = count_per_gpu(len(logits), like=logits)
    total = F.binary_cross_entropy_with_logits(logits, scores.to(logits), reduction="sum")
    return total / num_questions
