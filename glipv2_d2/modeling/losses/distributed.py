"""Counts and rows over all processes, so that losses equal those of one large batch.

Distributed training averages the gradients of all processes. A sum over the images of a process
is therefore divided by a count *per process*. Every process must make the same calls.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_over_gpus(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes, without gradient; may overwrite them."""
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
        values = values / comm.get_world_size()
    return values


def count_per_gpu(count: int, like: Tensor) -> Tensor:
    """The count of all processes, at least 1, divided by the number of processes.

    Args:
        count: count of this process.
        like: a tensor of the dtype and device of the result.
    """
    return mean_over_gpus(like.new_tensor(count)).clamp(min=1 / comm.get_world_size())


def gather_rows(rows: Tensor) -> list[Tensor]:
    """The rows of every process, with gradients to all of them.

    ``torch.distributed.nn.functional.all_gather`` does the same, but is deprecated.

    Args:
        rows: (K, ...); K may differ between processes, and be 0.

    Returns:
        For each process in the order of ranks (K_rank, ...).
    """
    if comm.get_world_size() == 1:
        return [rows]
    counts = _AllGather.apply(torch.tensor(len(rows), device=rows.device)).tolist()
    # Collectives need tensors of one size, and some backends refuse empty ones.
    padding = rows.new_zeros(max(1, *counts) - len(rows), *rows.shape[1:])
    gathered = _AllGather.apply(torch.cat([rows, padding]))
    return [padded[:count] for padded, count in zip(gathered, counts, strict=True)]


class _AllGather(torch.autograd.Function):
    """Stacks the equally large tensors of all processes; sums their gradients backwards."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, grad_output: Tensor) -> Tensor:
        gradients = grad_output.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradients)
        return gradients[comm.get_rank()]
