from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glipv2_d2.layers import blockwise_attention as module
from glipv2_d2.layers.blockwise_attention import MAX_SCORE, AbsorbedText, blockwise_attention
from glipv2_d2.layers.packed_linear import MIN_ROWS

N, P, C, H, T = 2, 5, 3, 2, 4


def random_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, AbsorbedText]:
    """Positions and tokens; the last token of the second image is padding."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    padding_bias = torch.zeros(N, 1, 1, T, dtype=dtype)
    padding_bias[1, ..., -1] = torch.finfo(dtype).min
    text = AbsorbedText(
        H, random(N, C, H * T), random(N, 1, H * T), random(N, H * T, C), padding_bias
    )
    return random(N, P, C), text


def outputs(visual: Tensor, text: AbsorbedText, *, dropout: float) -> tuple[Tensor, ...]:
    """All results, with one seed for dropout."""
    torch.manual_seed(1)
    updated, context = blockwise_attention(visual, text, dropout=dropout)
    results = (context.features, context.weight_sum, context.logsumexp)
    return results if text.value is None else (updated, *results)


def as_function_of_tensors(text: AbsorbedText, **kwargs: object) -> Callable[..., tuple]:
    def call(visual: Tensor, key: Tensor, key_bias: Tensor, *value: Tensor) -> tuple[Tensor, ...]:
        leaves = replace(text, key=key, key_bias=key_bias, value=value[0] if value else None)
        return outputs(visual, leaves, **kwargs)

    return call


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("block_positions", [1, 2, 100])
@pytest.mark.parametrize("text_to_image", [True, False])
def test_gradients_equal_finite_differences(
    text_to_image: bool,
    block_positions: int,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BLOCK_SCORES", {"cpu": block_positions * N * H * T})
    visual, text = random_inputs()
    leaves = [visual, text.key, text.key_bias, *([text.value] if text_to_image else [])]
    assert torch.autograd.gradcheck(
        as_function_of_tensors(text, dropout=dropout),
        [leaf.requires_grad_() for leaf in leaves],
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_results_are_equal_without_gradients_and_written_in_place(dropout: float) -> None:
    visual, text = random_inputs()
    expected = outputs(visual, text, dropout=dropout)
    with torch.no_grad():
        ours = outputs(visual, text, dropout=dropout)
    for result, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, other)
    assert ours[0] is visual


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_blocks_with_packed_weights_of_a_padded_batch(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole blocks and a rest; only the second image has padding tokens."""
    _, text = random_inputs()
    num_rows = 2 * MIN_ROWS + 100
    visual = torch.randn(N, num_rows, C, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(module, "MAX_BLOCK_SCORES", {"cpu": MIN_ROWS * text.key.shape[2]})
    expected = outputs(visual.double(), text, dropout=0.0)
    tensors = {name: getattr(text, name).to(dtype) for name in ("key", "key_bias", "value")} | {
        "padding_bias": torch.where(text.padding_bias < 0, torch.finfo(torch.float32).min, 0.0)
    }
    with torch.no_grad():
        ours = outputs(visual.to(dtype), replace(text, **tensors), dropout=0.0)
    for result, other in zip(ours, expected, strict=True):
        error = (result.double() - other).norm() / other.norm()
        assert error <= tolerance


def test_logsumexp_is_that_of_the_scores() -> None:
    visual, text = random_inputs()
    scores = visual @ text.key + text.key_bias
    _, context = blockwise_attention(visual, text)
    torch.testing.assert_close(context.logsumexp, scores.logsumexp(dim=1))


def test_dropout_drops_weights_without_scaling() -> None:
    """With this many positions the dropped fraction is close to the probability."""
    torch.manual_seed(0)
    visual = torch.zeros(1, 4000, C)
    text = AbsorbedText(1, torch.zeros(1, C, 1), torch.zeros(1, 1, 1))
    text = replace(text, value=torch.ones(1, 1, C), padding_bias=torch.zeros(1, 1, 1, 1))
    visual, context = blockwise_attention(visual, text, dropout=0.3)
    assert set(visual.unique().tolist()) == {0.0, 1.0}
    assert visual.mean().item() == pytest.approx(0.7, abs=0.04)
    assert context.weight_sum.item() == pytest.approx(0.7, abs=0.04)


def test_clamped_scores_have_no_gradient() -> None:
    visual, text = random_inputs()
    key_bias = text.key_bias.clone()
    key_bias[..., 0] = 2 * MAX_SCORE
    key_bias.requires_grad_()
    updated, context = blockwise_attention(visual, replace(text, key_bias=key_bias))
    (updated.sum() + context.features.sum() + context.logsumexp.sum()).backward()
    assert key_bias.grad is not None
    assert key_bias.grad[..., 0].eq(0).all()
    assert context.logsumexp[:, 0].gt(MAX_SCORE).all(), "logsumexp of P equal scores exceeds them"


def test_no_tensor_of_the_size_of_the_scores_is_saved_for_backward() -> None:
    visual, text = random_inputs()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        blockwise_attention(visual.requires_grad_(), text, dropout=0.4)
    assert saved
    assert max(tensor.numel() for tensor in saved) < N * P * H * T
