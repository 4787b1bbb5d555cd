from __future__ import annotations

import numpy as np
import torch

from glipv2_d2.modeling.losses import mask_loss


def test_the_loss_is_the_mean_cross_entropy_of_all_pixels() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, (3, 4, 4)), rng.integers(0, 2, (3, 4, 4))
    probabilities = 1 / (1 + np.exp(-logits))
    correct = np.where(targets == 1, probabilities, 1 - probabilities)
    loss = mask_loss(torch.from_numpy(logits), torch.from_numpy(targets))
    np.testing.assert_allclose(loss, -np.log(correct).mean())


def test_without_masks_the_loss_is_0_and_connected() -> None:
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 4, 4))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None


def test_half_precision_is_summed_in_float32() -> None:
    """The sum of 2^16 pixels would be infinite in half precision."""
    logits = torch.full((1, 256, 256), 8.0, dtype=torch.float16)
    loss = mask_loss(logits, torch.zeros(1, 256, 256, dtype=torch.bool))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.nn.functional.softplus(torch.tensor(8.0)))
