"""Detectron2's training samplers, in the same order, without a Python list of an epoch's indices.

A list of 10 million indices takes 400 MB, in every process that loads data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch import Tensor

# Indices that are in a Python list at once; also records whose repeats are drawn at once.
CHUNK = 2**16
# Indices of an epoch with more of them take 64 bits each.
MAX_INT32 = 2**31 - 1


class CompactTrainingSampler(TrainingSampler):
    """Detectron2's TrainingSampler with 4 bytes per record."""

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            order = torch.randperm(self._size, generator=generator, dtype=_dtype(self._size))
            for chunk in order.split(CHUNK):
                yield from chunk.tolist()


class CompactRepeatFactorSampler(RepeatFactorTrainingSampler):
    """Detectron2's RepeatFactorTrainingSampler with 8 bytes per record, and 4 per repeat."""

    def __init__(self, repeat_factors: Tensor, *, seed: int) -> None:
        # Of Detectron2's attributes, only seed and rank are used.
        super().__init__(repeat_factors[:0], seed=seed)
        self._factors = repeat_factors

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            ends = self._draw_ends(generator)
            order = torch.randperm(int(ends[-1]), generator=generator, dtype=ends.dtype)
            # Detectron2 repeats each index as drawn, and takes the indices in this order.
            for chunk in order.split(CHUNK):
                yield from torch.searchsorted(ends, chunk, right=True).tolist()

    def _draw_ends(self, generator: torch.Generator) -> Tensor:
        """(num_records,) cumulative repeats of an epoch: each record's factor, rounded randomly."""
        size = len(self._factors)
        ends = torch.empty(size, dtype=_dtype(size * (int(self._factors.max()) + 1)))
        total = 0
        for begin in range(0, size, CHUNK):
            factors = self._factors[begin : begin + CHUNK]
            whole = torch.trunc(factors)
            # torch draws the numbers of a tensor one after the other: chunks change none of them.
            is_rounded_up = torch.rand(len(factors), generator=generator) < factors - whole
            repeats = whole.long() + is_rounded_up
            ends[begin : begin + CHUNK] = total + repeats.cumsum(0)
            total = int(ends[begin : begin + CHUNK][-1])
        return ends


def _dtype(size: int) -> torch.dtype:
    return torch.int32 if size <= MAX_INT32 else torch.int64
