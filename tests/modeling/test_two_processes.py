"""Two processes with two images each have the losses and gradients of one with all four."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from helpers.two_processes import (
    RELATIVE,
    Step,
    assert_same_gradients,
    batches,
    run_process,
    train_step,
)

BATCHES = list(batches())


@pytest.fixture(scope="module")
def shared_steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(run_process, args=(str(folder),), nprocs=2)
    return torch.load(folder / "steps.pth", weights_only=True)


@pytest.fixture(scope="module")
def steps() -> dict[str, Step]:
    return {name: train_step(inputs) for name, inputs in batches().items()}


@pytest.mark.parametrize("batch", BATCHES)
def test_losses_are_equal(
    steps: dict[str, Step], shared_steps: dict[str, Step], batch: str
) -> None:
    losses = steps[batch]["losses"]
    assert losses.keys() == {
        *("loss_token", "loss_box", "loss_centerness", "loss_inter_image", "loss_mlm", "loss_mask"),
        *("loss_answer", "loss_caption"),
    }
    assert all(loss > 0 for loss in losses.values())
    torch.testing.assert_close(shared_steps[batch]["losses"], losses, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_are_equal(
    steps: dict[str, Step], shared_steps: dict[str, Step], batch: str
) -> None:
    assert_same_gradients(shared_steps[batch]["gradients"], steps[batch]["gradients"])
