"""The memory-efficient form of bi-directional attention against its textbook form."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glipv2_d2.layers import blockwise_attention
from glipv2_d2.layers.bi_attention import memory_efficient_bi_attention
from glipv2_d2.modeling.fusion.bi_attention import BiAttention, bi_attention, text_attention

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def make_attention(dropout: float = 0.0) -> BiAttention:
    torch.manual_seed(0)
    attention = BiAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=dropout
    )
    for linear in attention.children():
        torch.nn.init.normal_(linear.bias)
    return attention


def random_inputs(dtype: torch.dtype = torch.float32, num_tokens: int = 5) -> Inputs:
    """Visual features, text features, text mask and visual scale; the second text is padded."""
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(2, 13, 6, generator=generator).to(dtype)
    text = torch.randn(2, num_tokens, 10, generator=generator).to(dtype)
    mask = torch.tensor([[True] * num_tokens, [True] * 3 + [False] * (num_tokens - 3)])
    return visual, text, mask, torch.rand(6, generator=generator).to(dtype)


@pytest.mark.parametrize("num_tokens", [5, 20])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=str
)
def test_results_and_gradients_equal_the_textbook_form(
    dtype: torch.dtype, tolerance: float, num_tokens: int
) -> None:
    attention = make_attention().to(dtype)
    inputs = random_inputs(dtype, num_tokens)
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    leaves += attention.parameters()
    results, gradients = [], []
    for function in (memory_efficient_bi_attention, bi_attention):
        results.append(function(*inputs, attention.projections))
        loss = sum(x.square().sum() for x in results[-1])
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=0.1 * tolerance, rtol=0.1 * tolerance)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def test_dropout_equals_the_textbook_form_with_the_same_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention, inputs, p = make_attention().double(), random_inputs(torch.float64), 0.3
    draw, masks = blockwise_attention.keep_mask, []

    def keep_mask(*args: object) -> Tensor:
        masks.append(draw(*args))
        return masks[-1]

    def dropout(weights: Tensor, probability: float) -> Tensor:
        # Textbook: (N, H, P, T), then (N, H, T, P). The masks: (N, P, H T) with padded tokens,
        # image to text first.
        mask = masks.pop().unflatten(2, (4, -1)).permute(0, 2, 1, 3)[..., : inputs[1].shape[1]]
        mask = mask if mask.shape == weights.shape else mask.transpose(-1, -2)
        return weights * mask.abs() / (1 - probability)

    leaves = [inputs[0].requires_grad_(), inputs[1].requires_grad_(), *attention.parameters()]
    monkeypatch.setattr(blockwise_attention, "keep_mask", keep_mask)
    ours = memory_efficient_bi_attention(*inputs, attention.projections, p)
    recorded = list(masks)
    our_gradients = torch.autograd.grad(sum(x.square().sum() for x in ours), leaves)
    masks[:] = recorded
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    expected = bi_attention(*inputs, attention.projections, p)
    gradients = torch.autograd.grad(sum(x.square().sum() for x in expected), leaves)
    for pair in zip((*ours, *our_gradients), (*expected, *gradients), strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("block_scores", [1, 3 * 2 * 4 * 5, 10_000])
def test_blocks_of_positions_equal_the_textbook_form(
    block_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, (visual, *others) = make_attention().double(), random_inputs(torch.float64)
    # Scores far apart: the maximum of a token comes early for some and late for others.
    visual = visual * 30
    expected = bi_attention(visual, *others, attention.projections)
    monkeypatch.setattr(blockwise_attention, "MAX_BLOCK_SCORES", {"cpu": block_scores})
    with torch.no_grad():
        in_blocks = attention(visual, *others)
    for ours, whole in zip(in_blocks, expected, strict=True):
        torch.testing.assert_close(ours, whole)


def test_text_attention_alone_equals_the_text_update_of_both_directions() -> None:
    attention, inputs = make_attention(), random_inputs()
    _, expected = bi_attention(*inputs, attention.projections)
    torch.testing.assert_close(attention.attend_text(*inputs[:2]), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(text_attention(*inputs[:2], attention.projections), expected)


def test_padding_of_the_text_changes_nothing() -> None:
    attention, (visual, text, mask, scale) = make_attention(), random_inputs()
    padded_visual, padded_text = attention(visual[1:], text[1:], mask[1:], scale)
    unpadded_visual, unpadded_text = attention(visual[1:], text[1:, :3], mask[1:, :3], scale)
    torch.testing.assert_close(padded_visual, unpadded_visual)
    torch.testing.assert_close(padded_text[:, :3], unpadded_text)


def test_dropout_applies_to_the_value_bias_of_the_text_update() -> None:
    attention, (visual, *others) = make_attention(dropout=0.99), random_inputs()
    torch.nn.init.zeros_(attention.visual_value.weight)  # only the bias is left
    torch.nn.init.zeros_(attention.language_out.bias)
    torch.manual_seed(0)
    _, text = attention.train()(visual[:, :1], *others)
    assert text.eq(0).all(dim=-1).any(), "the update of a token without weights is zero"


def test_dropout_does_not_apply_to_the_output_bias() -> None:
    attention, inputs = make_attention(dropout=0.5), random_inputs()
    torch.nn.init.zeros_(attention.language_value.weight)
    torch.nn.init.zeros_(attention.language_value.bias)
    updated, _ = attention.train()(*inputs)
    visual, scale = inputs[0], inputs[-1]
    torch.testing.assert_close(updated, visual + scale * attention.visual_out.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_finite_with_padding(dtype: torch.dtype) -> None:
    attention, inputs = make_attention(), random_inputs()
    with torch.autocast("cpu", dtype=dtype):
        outputs = attention(*inputs)
    assert all(out.isfinite().all() for out in outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_are_close_to_fp32(dtype: torch.dtype) -> None:
    attention, inputs = make_attention(), random_inputs()
    leaves = [*attention.parameters(), inputs[0].requires_grad_(), inputs[-1].requires_grad_()]

    def gradients() -> tuple[Tensor, ...]:
        loss = sum(out.float().square().sum() for out in attention(*inputs))
        return torch.autograd.grad(loss, leaves)

    expected = gradients()
    with torch.autocast("cpu", dtype=dtype):
        ours = gradients()
    for gradient, exact in zip(ours, expected, strict=True):
        assert gradient.dtype == exact.dtype
        # The gradient of the key bias is zero but for noise: softmax cancels it.
        assert (gradient - exact).norm() < 0.05 * exact.norm() + 0.02


def test_activation_checkpointing_repeats_the_dropout_masks() -> None:
    attention, inputs = make_attention(dropout=0.5).train(), random_inputs()
    gradients = []
    for run in (attention, partial(checkpoint, attention, use_reentrant=False)):
        torch.manual_seed(0)
        loss = sum(out.square().sum() for out in run(*inputs))
        gradients.append(torch.autograd.grad(loss, list(attention.parameters())))
    for ours, expected in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_means_over_many_positions_do_not_overflow_in_fp16(with_gradients: bool) -> None:
    attention, (_, text, mask, scale) = make_attention(), random_inputs()
    visual = torch.full((2, 20_000, 6), 4.0)
    expected = attention(visual, text, mask, scale)[1]
    with torch.autocast("cpu", dtype=torch.float16), torch.set_grad_enabled(with_gradients):
        _, update = attention(visual.clone(), text, mask, scale)
    torch.testing.assert_close(update.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_autocast_does_not_round_the_residual_input(with_gradients: bool) -> None:
    attention, (visual, text, mask, scale) = make_attention(), random_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradients):
        updated, _ = attention(visual.clone(), text, mask, scale * 0)
    assert torch.equal(updated, visual)


def test_training_mode_gives_the_same_results_without_gradients() -> None:
    attention, (visual, *others) = make_attention(dropout=0.5).train(), random_inputs()
    torch.manual_seed(0)
    expected = attention(visual, *others)
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(attention(visual, *others), expected)
