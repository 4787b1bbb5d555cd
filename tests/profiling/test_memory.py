from __future__ import annotations

import torch

from glipv2_d2.profiling.memory import peaks_by_batch_size


def test_out_of_memory_is_a_result_and_the_last_one() -> None:
    def step(batch_size: int) -> None:
        if batch_size == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    peaks = list(peaks_by_batch_size(step, range(1, 9), torch.device("cpu")))
    assert peaks == [(1, 0), (2, 0), (3, None)]
