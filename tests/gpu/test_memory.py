"""Memory of training on CUDA; on the CPU, which has no counts, that the steps run."""

from __future__ import annotations

import pytest
import torch
from helpers.device_stages import DEVICES
from helpers.models import tiny_model, training_input

from glipv2_d2.profiling.memory import peaks_by_batch_size


@pytest.mark.parametrize("device", DEVICES)
def test_training_memory_is_measured_per_batch_size(device: str) -> None:
    model = tiny_model().to(device).train()
    batch = [training_input([[5, 5, 50, 60]], [0], classes=["cat", "dog"])] * 2

    def step(batch_size: int) -> None:
        sum(model(batch[:batch_size]).values()).backward()

    peaks = dict(peaks_by_batch_size(step, (1, 2), torch.device(device)))
    assert list(peaks) == [1, 2]
    assert device == "cpu" or 0 < peaks[1] < peaks[2]
