"""Training in processes of a backend gives the losses and gradients of one process on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from helpers.two_processes import (
    RELATIVE,
    assert_same_gradients,
    batches,
    run_process,
    train_step,
)

CASES = [("gloo", 1)] + [
    pytest.param("nccl", number, marks=pytest.mark.gpu)
    for number in (1, 2)
    # The first is collected without a device, too, and deselected there.
    if number <= max(torch.cuda.device_count(), 1)
]


@pytest.mark.parametrize(("backend", "num_processes"), CASES)
def test_losses_and_gradients_are_those_of_one_process(
    backend: str, num_processes: int, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), backend, num_processes, 1)
    if num_processes == 1:
        run_process(0, *arguments)
    else:
        torch.multiprocessing.spawn(run_process, args=arguments, nprocs=num_processes)
    ((name, step),) = torch.load(tmp_path / "steps.pth", weights_only=True).items()
    expected = train_step(batches()[name])
    torch.testing.assert_close(step["losses"], expected["losses"], rtol=RELATIVE, atol=0)
    assert_same_gradients(step["gradients"], expected["gradients"])
