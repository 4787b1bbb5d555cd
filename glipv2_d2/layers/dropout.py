"""Dropout of large tensors on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Random bits that decide about an entry: probabilities are multiples of 1 / 65536.
_BITS = 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout`` with other random numbers, three times as fast on a CPU.

    torch draws a random number of its own for every entry; here four entries share one. Only with
    large attention maps is that worth it (our choice).

    Args:
        p: the probability of an entry to become 0; the others are divided by 1 - p.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    return torch.where(keep_mask(x, p), x * (1 / (1 - p)), 0.0)


def keep_mask(like: Tensor, p: float) -> Tensor:
    """A bool tensor of the shape of ``like``, False with probability ``p`` (in 1 / 65536)."""
    numbers_per_draw = 64 // _BITS
    draws = torch.empty(-(-like.numel() // numbers_per_draw), dtype=torch.int64)
    # From the least to the largest int64: all 64 bits are random.
    numbers = draws.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)
    threshold = round(p * 2**_BITS) + torch.iinfo(torch.int16).min
    return (numbers[: like.numel()] >= threshold).view(like.shape)
