"""Attention that goes from left to right, and what it keeps of the words that it has read.

R: texts that are read side by side. P: tokens read before, T: those that are read now. H: heads of
width d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """What a layer keeps of the tokens it has read.

    Attributes:
        key, value: (R, H, P, d).
    """

    key: Tensor
    value: Tensor

    @property
    def num_tokens(self) -> int:
        return self.key.shape[2]

    def rows(self, indices: Tensor) -> KVCache:
        """That of some of the texts, any of them several times."""
        return KVCache(self.key[indices], self.value[indices])


def extend(past: KVCache | None, key: Tensor, value: Tensor) -> KVCache:
    """The past with (R, H, T, d) further tokens in it."""
    if past is None:
        return KVCache(key, value)
    return KVCache(torch.cat([past.key, key], dim=2), torch.cat([past.value, value], dim=2))


def causal_mask(num_tokens: int, device: torch.device, num_past: int = 0) -> Tensor:
    """Which tokens the next ones read: all before them and themselves.

    Returns:
        (T, P + T) bool.

    >>> causal_mask(2, torch.device("cpu"), num_past=1).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    whole = torch.ones(num_tokens, num_past + num_tokens, dtype=torch.bool, device=device)
    return whole.tril(num_past)
