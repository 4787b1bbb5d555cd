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


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    stride=st.sampled_from([1, 2]),
    spread=st.sampled_from([0.5, 3.0, 30.0]),  # 30: most samples far outside
)
def test_cpu_path_equals_torchvisions_kernel(
    height: int, width: int, stride: int, spread: float
) -> None:
    inputs = random_inputs(size=(height, width), stride=stride, spread=spread)
    x, offsets, modulation, weight, bias = inputs
    expected = deform_conv2d(x, offsets, weight, bias, stride=stride, padding=1, mask=modulation)
    torch.testing.assert_close(
        modulated_deform_conv(*inputs, stride=stride), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("band_samples", [1, 100, 10_000])
def test_bands_of_rows_equal_the_whole(
    stride: int, band_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_inputs(size=(9, 7), stride=stride)
    monkeypatch.setattr(deform_conv, "_BAND_SAMPLES", band_samples)
    whole = modulated_deform_conv(*inputs, stride=stride)
    with torch.no_grad():
        in_bands = modulated_deform_conv(*inputs, stride=stride)
    torch.testing.assert_close(in_bands, whole)


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


def test_offsets_beyond_the_range_of_integers_read_zero() -> None:
    x, offsets, modulation, weight, bias = random_inputs(size=(3, 3))
    out = modulated_deform_conv(x, torch.full_like(offsets, 1e30), modulation, weight, bias)
    torch.testing.assert_close(out, bias.view(1, -1, 1, 1).expand_as(out))


def test_autocast_computes_in_fp32() -> None:
    inputs = random_inputs(size=(5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = modulated_deform_conv(*inputs)
    assert torch.equal(out, modulated_deform_conv(*inputs))


def test_module_is_initialised_as_the_reference() -> None:
    conv = ModulatedDeformConv(16, 8)
    assert conv.weight.abs().max() <= 1 / (16 * 9) ** 0.5
    assert conv.bias.eq(0).all()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    inputs = random_inputs(size=(9, 7))
    on_gpu = modulated_deform_conv(*[tensor.cuda() for tensor in inputs])
    torch.testing.assert_close(on_gpu.cpu(), modulated_deform_conv(*inputs), atol=1e-4, rtol=1e-4)
