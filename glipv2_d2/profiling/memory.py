"""Peak memory of training steps on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch


def peaks_by_batch_size(
    step: Callable[[int], object], batch_sizes: Iterable[int], device: torch.device
) -> Iterator[tuple[int, int | None]]:
    """Run a step per batch size, and yield the size and the peak of the allocated bytes.

    None in place of the bytes: the device has too little memory. No larger size is tried then.

    Args:
        step: runs on a batch of the given size.
        batch_sizes: in ascending order.
        device: a CUDA device; others are without an allocator that counts, and yield 0.
    """
    is_cuda = device.type == "cuda"
    for batch_size in batch_sizes:
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step(batch_size)
        except torch.cuda.OutOfMemoryError:
            yield batch_size, None
            return
        yield batch_size, torch.cuda.max_memory_allocated(device) if is_cuda else 0
