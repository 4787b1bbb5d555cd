"""Key-value caches of causal attention.

R: sequences in parallel. P: cached tokens, T: new tokens. H: heads of width d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values that an attention layer has computed so far.

    Attributes:
        key, value: (R, H, P, d).
    """

    key: Tensor
    value: Tensor

    @property
    def num_tokens(self) -> int:
        return self.key.shape[2]

    def rows(self, indices: Tensor) -> KVCache:
        """The cache of some of the sequences, possibly repeated."""
        return KVCache(self.key[indices], self.value[indices])


def extend(cache: KVCache | None, key: Tensor, value: Tensor) -> KVCache:
    """The cache with (R, H, T, d) new keys and values appended."""
    if cache is None:
        return KVCache(key, value)
    return KVCache(torch.cat([cache.key, key], dim=2), torch.cat([cache.value, value], dim=2))


def causal_mask(num_tokens: int, device: torch.device, num_cached: int = 0) -> Tensor:
    """Which tokens the new ones attend to: all before them and themselves.

    Returns:
        (T, P + T) bool.

    >>> causal_mask(2, torch.device("cpu"), num_cached=1).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    mask = torch.ones(num_tokens, num_cached + num_tokens, dtype=torch.bool, device=device)
    return mask.tril(num_cached)
