from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from glipv2_d2.layers import deform_conv
from glipv2_d2.layers.deform_conv import ModulatedDeformConv, modulated_deform_conv


def random_inputs(
    *,
    size: tuple[int, int],
    stride: int = 1,
    spread: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    height, width = size
    out = (height + stride - 1) // stride, (width + stride - 1) // stride
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, height, width), (2, 18, *out), (2, 9, *out), (4, 3, 3, 3), (4,)]
    x, offsets, modulation, weight, bias = (
        torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes
    )
    return [x, offsets * spread, modulation.sigmoid(), weight, bias]


def torchvisions_conv(x, offsets, modulation, weight, bias, stride):
    return deform_conv2d(x, offsets, weight, bias, stride=stride, padding=1, mask=modulation)


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    stride=st.sampled_from([1, 2]),
    spread=st.sampled_from([0.5, 3.0, 30.0]),  # 30: most samples far outside
)
def test_cpu_results_equal_torchvisions_kernel(
    height: int, width: int, stride: int, spread: float
) -> None:
    inputs = random_inputs(size=(height, width), stride=stride, spread=spread)
    expected = torchvisions_conv(*inputs, stride=stride)
    torch.testing.assert_close(
        modulated_deform_conv(*inputs, stride=stride), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("block_samples", [1, 100, 10_000])
def test_blocks_of_rows_equal_the_whole(
    stride: int, block_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_inputs(size=(9, 7), stride=stride)
    monkeypatch.setattr(deform_conv, "_BLOCK_SAMPLES", block_samples)
    whole = modulated_deform_conv(*inputs, stride=stride)
    with torch.no_grad():
        in_blocks = modulated_deform_conv(*inputs, stride=stride)
    torch.testing.assert_close(in_blocks, whole)


def test_channels_last_maps_stay_channels_last() -> None:
    x, *others = random_inputs(size=(5, 6))
    expected = modulated_deform_conv(x, *others)
    out = modulated_deform_conv(x.to(memory_format=torch.channels_last), *others)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)


def test_zero_offsets_and_full_modulation_are_a_plain_convolution() -> None:
    x, offsets, modulation, weight, bias = random_inputs(size=(5, 6))
    out = modulated_deform_conv(x, offsets * 0, torch.ones_like(modulation), weight, bias)
    torch.testing.assert_close(out, F.conv2d(x, weight, bias, padding=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_equal_finite_differences(stride: int) -> None:
    inputs = random_inputs(size=(3, 4), stride=stride, spread=0.7, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda *args: modulated_deform_conv(*args, stride=stride), leaves, eps=1e-6, atol=1e-5
    )


def test_samples_at_offsets_beyond_the_range_of_integers_are_zero() -> None:
    x, offsets, modulation, weight, bias = random_inputs(size=(3, 3))
    out = modulated_deform_conv(x, torch.full_like(offsets, 1e30), modulation, weight, bias)
    torch.testing.assert_close(out, bias.view(1, -1, 1, 1).expand_as(out))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_at_whole_pixels_are_torchvisions(stride: int) -> None:
    """With zero offsets, as at initialisation, samples lie on pixels and at -1 and H."""
    inputs = random_inputs(size=(5, 4), stride=stride, spread=0.0, dtype=torch.float64)
    grads = []
    for conv in (modulated_deform_conv, torchvisions_conv):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        conv(*leaves, stride=stride).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_offsets_do_not_affect_other_samples(value: float) -> None:
    x, offsets, modulation, weight, bias = random_inputs(size=(3, 4))
    expected = modulated_deform_conv(x, offsets, modulation, weight, bias)
    offsets[:, :, 0, 0] = value
    out = modulated_deform_conv(x, offsets, modulation, weight, bias)
    torch.testing.assert_close(out[:, :, 1:], expected[:, :, 1:])
    torch.testing.assert_close(out[:, :, 0, 1:], expected[:, :, 0, 1:])


def test_fp16_autocast_computes_in_fp32() -> None:
    inputs = random_inputs(size=(5, 5))
    with torch.autocast("cpu", dtype=torch.float16):
        out = modulated_deform_conv(*inputs)
    assert torch.equal(out, modulated_deform_conv(*inputs))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_bf16_autocast_rounds_samples_and_products_but_not_locations(with_gradients: bool) -> None:
    """In bf16, offsets of hundreds of pixels would lose their fractions."""
    x, offsets, *others = random_inputs(size=(5, 5))
    x = F.pad(x, (300, 0, 300, 0))
    offsets[:, 0::2] += 300
    offsets[:, 1::2] += 300
    expected = modulated_deform_conv(x, offsets, *others)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradients):
        out = modulated_deform_conv(x, offsets, *others)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.02)


def test_gradients_under_bf16_autocast_are_close_to_fp32() -> None:
    leaves = [tensor.requires_grad_() for tensor in random_inputs(size=(9, 7))]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(modulated_deform_conv(*leaves).float().square().sum(), leaves)

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients()
    for gradient, exact in zip(ours, expected, strict=True):
        assert gradient.dtype == exact.dtype
        assert (gradient - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("block_samples", [1, 100])
def test_gradients_of_blocks_of_rows_equal_those_of_the_whole(
    block_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [tensor.requires_grad_() for tensor in random_inputs(size=(9, 7), stride=2)]

    def gradients() -> tuple[torch.Tensor, ...]:
        out = modulated_deform_conv(*leaves, stride=2)
        return torch.autograd.grad(out.square().sum(), leaves)

    whole = gradients()
    monkeypatch.setattr(deform_conv, "_BACKWARD_BLOCK_SAMPLES", block_samples)
    for in_blocks, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(in_blocks, expected, atol=1e-4, rtol=1e-4)


def test_module_is_initialised_like_the_reference() -> None:
    conv = ModulatedDeformConv(16, 8)
    assert conv.weight.abs().max() <= 1 / (16 * 9) ** 0.5
    assert conv.bias.eq(0).all()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    inputs = random_inputs(size=(9, 7))
    on_gpu = modulated_deform_conv(*[tensor.cuda() for tensor in inputs])
    torch.testing.assert_close(on_gpu.cpu(), modulated_deform_conv(*inputs), atol=1e-4, rtol=1e-4)
