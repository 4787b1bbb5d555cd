"""Two processes with two images each have the losses and gradients of one with all four."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from helpers.two_processes import Step, batches, run_process, train_step

RELATIVE = 1e-5
# Of the gradient norm of the same layer's key.weight.
KEY_BIAS_RELATIVE = 1e-7
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
    gradients = steps[batch]["gradients"]
    for name, gradient in gradients.items():
        difference = (shared_steps[batch]["gradients"][name] - gradient).norm()
        tolerance = RELATIVE * gradient.norm() + 1e-12
        if name.endswith(".key.bias"):
            # 0 by algebra: a softmax is invariant to a shift of all its logits.
            weight = gradients[name.removesuffix("bias") + "weight"]
            tolerance += KEY_BIAS_RELATIVE * weight.norm()
        assert difference <= tolerance, name
