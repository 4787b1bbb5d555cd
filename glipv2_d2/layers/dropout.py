"""Dropout of large tensors, whose random choice can be drawn again."""

from __future__ import annotations

import torch
from torch import Tensor

# An entry is kept or dropped by the bits of a number of 15 bits: probabilities are multiples of
# 1 / 32768.
_BITS = 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keep_bits(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Choose what is dropped: int16 of the shape of ``like``, 0 with probability ``p``, else -1.

    On a CPU several times as fast as torch's dropout: four entries share a draw, and whole numbers
    are compared and masked many at a time where bools are not. Only with large attention maps is
    that worth it (our choice).

    Args:
        p: 0 <= p < 1.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    # From the least to the largest int64: all 64 bits are random.
    draws.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    numbers = draws.view(torch.int16)[: like.numel()].view(like.shape)
    # One bit less, so that a difference of two fits. Negative where the number is not below the
    # threshold; then the sign fills all bits.
    threshold = round(p * 2**_BITS) - 2 ** (_BITS - 1)
    return numbers.bitwise_right_shift_(1).neg_().add_(threshold - 1).bitwise_right_shift_(15)


def keep_(x: Tensor, bits: Tensor | None) -> Tensor:
    """Write zeros into ``x`` where :func:`keep_bits` has them, and leave the rest; None: leave all.

    What is left is not scaled up.
    """
    if bits is not None:
        bits = bits.to(_INTEGERS[x.element_size()])
        x.view(bits.dtype).bitwise_and_(bits)
    return x
