import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from glipv2_d2.modeling.losses import token_focal_loss, token_targets

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def focal() -> dict[str, Tensor]:
    arrays = np.load(ASSETS / "misc" / "misc.npz")
    return {k: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("focal/")}


def random_case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2, 5, 6), targets, and a mask with padding in both prompts."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, generator=generator, dtype=dtype) * 3
    targets = (torch.rand(2, 5, 6, generator=generator) < 0.3).to(dtype)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 5 + [False]])
    return logits, targets, mask


def test_loss_is_the_references(focal: dict[str, Tensor]) -> None:
    logits, targets, mask = focal["focal/logits"], focal["focal/targets"], focal["focal/mask"] > 0
    loss = token_focal_loss(logits, targets, mask, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(loss, focal["focal/binary"], atol=0, rtol=1e-5)
    everything = token_focal_loss(logits, targets, torch.ones_like(mask), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(everything, focal["focal/nomask"], atol=0, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_value_and_gradient_are_fvcores_on_valid_tokens(alpha: float, gamma: float) -> None:
    logits, targets, mask = random_case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = token_focal_loss(ours, targets, mask, alpha, gamma)
    expected = (sigmoid_focal_loss(theirs, targets, alpha, gamma) * mask[:, None]).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradient_is_that_of_finite_differences() -> None:
    logits, targets, mask = random_case(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: token_focal_loss(x, targets, mask, 0.25, 2.0), logits.requires_grad_()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_padding_has_neither_a_loss_nor_a_gradient(value: float) -> None:
    logits, targets, mask = random_case()
    expected = token_focal_loss(logits, targets, mask, 0.25, 2.0)
    dirty = logits.masked_fill(~mask[:, None], value).requires_grad_()
    loss = token_focal_loss(dirty, targets, mask, 0.25, 2.0)
    loss.backward()
    assert loss.equal(expected)
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    assert not dirty.grad.masked_select(~mask[:, None]).any()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[-5e4, 5e4]]]).expand(1, 2, 2).clone().requires_grad_()
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = token_focal_loss(logits, targets, torch.ones(1, 2, dtype=torch.bool), 0.25, 2.0)
    loss.backward()
    torch.testing.assert_close(loss.item(), 5e4 * (0.25 + 0.75))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, targets, mask = random_case()
    half = logits.bfloat16()
    loss = token_focal_loss(half, targets, mask, 0.25, 2.0)
    assert loss.dtype == torch.float32
    assert loss.equal(token_focal_loss(half.float(), targets, mask, 0.25, 2.0))


def test_token_targets_are_the_references() -> None:
    golden = np.load(ASSETS / "tiny_T_s0" / "golden_train.npz")
    meta = json.loads((ASSETS / "tiny_T_s0" / "meta.json").read_text())
    gt_labels = meta["train"]["plain_one"]["gt"][0]["labels"]
    # The stored assignment contains classes; each occurs once.
    labels = golden["plain_one/assign0/labels"].tolist()
    matched_idxs = torch.tensor([gt_labels.index(label) if label else -1 for label in labels])
    targets = token_targets(matched_idxs, torch.from_numpy(golden["plain_one/positive_map"]), 256)
    expected = torch.from_numpy(golden["plain_one/assign0/token_labels_argwhere"])
    assert targets.nonzero().int().equal(expected)
    assert targets.unique().tolist() == [0, 1]


def test_background_has_a_token_only_if_the_prompt_fills_the_limit() -> None:
    matched_idxs, positive_map = torch.tensor([-1, 0]), torch.eye(8, dtype=torch.bool)[:1]
    assert token_targets(matched_idxs, positive_map, max_tokens=9).sum(1).tolist() == [0, 1]
    full = token_targets(matched_idxs, positive_map, max_tokens=8)
    assert full.nonzero().tolist() == [[0, 7], [1, 0]]


def test_without_ground_truth_all_token_targets_are_0() -> None:
    targets = token_targets(torch.full((3,), -1), torch.zeros(0, 5, dtype=torch.bool), 256)
    assert targets.equal(torch.zeros(3, 5))
