"""Modulated deformable convolution without a compiled Detectron2 operator.

On CUDA torchvision's kernel runs. On CPU the samples are gathered by ``embedding_bag`` (four
weighted rows each) and multiplied by the weights in matrix products: several times faster than
torchvision's CPU kernel, most of all in the backward pass, and equal to it. Samples, which are nine
times the map, exist in bands only; backwards they are gathered again. Channels-last maps come in
and go out without a copy.

Shapes: x (N, C, H, W); offsets (N, 2 K, Ho, Wo), for tap k the pair (dy, dx) at channels 2k, 2k+1;
modulation (N, K, Ho, Wo); weight (Co, C, k, k); K = k * k taps, row-major.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

# Samples that are gathered at a time: at 256 channels 19 MB, which stay in the cache until they are
# multiplied. Half as many make products that are too short to be fast.
_BAND_SAMPLES = 18432
# Backwards every band brings a gradient of the whole image, so there are fewer.
_BACKWARD_BAND_SAMPLES = 2**16


def modulated_deform_conv(
    x: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
) -> Tensor:
    """Convolve samples taken at shifted places, each scaled by its modulation (DCNv2).

    Samples are bilinear; what lies outside the image counts as zero. Padding is k // 2. Computed in
    fp32, as in the reference, also under autocast; only bf16's on a CPU computes the product in
    bf16, which is several times as fast there.

    Returns:
        (N, Co, Ho, Wo) in fp32 (fp64 for fp64 inputs), or the bf16 of the product.
    """
    in_bf16 = x.device.type == "cpu" and _autocast_is_bf16()
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Places are always precise.
        offsets, modulation = offsets.to(dtype), modulation.to(dtype)
        if in_bf16:
            dtype = torch.bfloat16
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        if x.is_cuda:
            padding = weight.shape[-1] // 2
            return deform_conv2d(
                x, offsets, weight, bias, stride=stride, padding=padding, mask=modulation
            )
        if torch.is_grad_enabled():
            return _with_gradients(x, offsets, modulation, weight, bias, stride)
        return _gather_and_multiply(x, offsets, modulation, weight, bias, stride)


def _autocast_is_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def _gather_and_multiply(
    x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    num_images, _, height, width = x.shape
    kernel = weight.permute(0, 2, 3, 1).flatten(1).t()  # (K C, Co)
    pixels = _framed(x, x.dtype)
    rows, row_weights = _bilinear_rows(offsets, modulation, (height, width), stride)
    row_weights = row_weights.to(x)

    out = x.new_empty(num_images, *modulation.shape[-2:], len(bias))
    for image, band in _bands(modulation, _BAND_SAMPLES):
        table = pixels[image].flatten(0, 1)
        samples = _gather(table, rows[image, band], row_weights[image, band])
        products = out[image, band].flatten(0, 1)
        torch.addmm(bias, samples.view(-1, kernel.shape[0]), kernel, out=products)
    return out.permute(0, 3, 1, 2)


def _bands(modulation: Tensor, most_samples: int) -> Iterator[tuple[int, slice]]:
    """Rows of each image's output that have a limited number of samples together."""
    num_images, num_taps, height, width = modulation.shape
    band_height = max(1, most_samples // (num_taps * width))
    for image in range(num_images):
        for top in range(0, height, band_height):
            yield image, slice(top, top + band_height)


# A compiler would break its graph in many places of the backward pass.
@torch.compiler.disable
def _with_gradients(*args: Any) -> Tensor:
    return _GatherAndMultiply.apply(*args)


class _GatherAndMultiply(torch.autograd.Function):
    """:func:`_gather_and_multiply` with a backward pass that gathers the samples again."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, _, ctx.stride = args
        ctx.save_for_backward(*tensors)
        return _gather_and_multiply(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, offsets, modulation, weight = ctx.saved_tensors
        d_out = gradients[0].permute(0, 2, 3, 1).to(x.dtype)
        kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (Co, K C)
        # Sampled at full precision: the gradient of a pixel is a sum over many samples.
        pixels = _framed(x, offsets.dtype)
        d_pixels = torch.zeros_like(pixels)
        d_offsets, d_modulation = torch.zeros_like(offsets), torch.zeros_like(modulation)
        d_kernel = torch.zeros_like(kernel, dtype=offsets.dtype)
        for image, band in _bands(modulation, _BACKWARD_BAND_SAMPLES):
            d_band = d_out[image, band].flatten(0, 1)
            with torch.enable_grad():
                leaves = (
                    pixels[image].flatten(0, 1).detach().requires_grad_(),
                    offsets[image : image + 1, :, band].detach().requires_grad_(),
                    modulation[image : image + 1, :, band].detach().requires_grad_(),
                )
                rows, row_weights = _bilinear_rows(
                    *leaves[1:], x.shape[-2:], ctx.stride, first_row=band.start
                )
                samples = _gather(leaves[0], rows, row_weights)
            d_samples = (d_band @ kernel).view(samples.shape).to(samples.dtype)
            d_table, of_offsets, of_modulation = torch.autograd.grad(samples, leaves, d_samples)
            d_pixels[image].view_as(d_table).add_(d_table)
            d_offsets[image : image + 1, :, band] = of_offsets
            d_modulation[image : image + 1, :, band] = of_modulation
            if ctx.needs_input_grad[3]:
                d_kernel += d_band.t() @ samples.detach().to(x.dtype).view(len(d_band), -1)
        d_weight = d_kernel.view_as(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (
            d_pixels[:, 2:-2, 2:-2].permute(0, 3, 1, 2).to(x.dtype),
            d_offsets,
            d_modulation,
            d_weight.to(weight.dtype),
            d_out.sum(dim=(0, 1, 2)),
            None,
        )


def _framed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) -> (N, H + 4, W + 4, C), two pixels of zeros around each map."""
    num_images, channels, height, width = x.shape
    framed = x.new_empty(num_images, height + 4, width + 4, channels, dtype=dtype)
    framed[:, 2:-2, 2:-2] = x.permute(0, 2, 3, 1)
    for border in (framed[:, :2], framed[:, -2:], framed[:, :, :2], framed[:, :, -2:]):
        border.zero_()
    return framed


def _gather(table: Tensor, rows: Tensor, row_weights: Tensor) -> Tensor:
    """Weighted sums of four rows each: (R, C), (..., 4), (..., 4) -> (S, C)."""
    return F.embedding_bag(
        rows.flatten(0, -2), table, mode="sum", per_sample_weights=row_weights.flatten(0, -2)
    )


def _bilinear_rows(
    offsets: Tensor,
    modulation: Tensor,
    size: tuple[int, int],
    stride: int,
    first_row: int = 0,
) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample and their weights.

    Args:
        offsets, modulation: of any rows of the output, ``first_row`` the first.
        size: (H, W) of the image.

    Returns:
        rows: (N, Ho, Wo, K, 4) int32 indices of an image's (H + 4) (W + 4) rows, as
            :func:`_framed` makes them.
        weights: (N, Ho, Wo, K, 4), bilinear times modulation.
    """
    num_taps, out_height, out_width = modulation.shape[-3:]
    kernel_size, device = math.isqrt(num_taps), offsets.device
    # All in the type of the offsets: an operation on mixed types converts a whole copy first.
    numbers = functools.partial(torch.arange, dtype=offsets.dtype, device=device)
    tap = numbers(kernel_size) - kernel_size // 2
    pixel_y = (numbers(out_height)[:, None, None] + first_row) * stride
    pixel_x = numbers(out_width)[:, None] * stride
    # (N, Ho, Wo, K) each, also in memory
    delta = offsets.permute(0, 2, 3, 1).contiguous().unflatten(3, (num_taps, 2))
    top, below = _pixel_before(
        delta[..., 0] + (pixel_y + tap.repeat_interleave(kernel_size)), size[0]
    )
    left, right_of = _pixel_before(delta[..., 1] + (pixel_x + tap.repeat(kernel_size)), size[1])
    modulation = modulation.permute(0, 2, 3, 1).contiguous()
    lower = below * modulation
    upper = modulation - lower
    lower_right, upper_right = lower * right_of, upper * right_of
    weights = [upper - upper_right, upper_right, lower - lower_right, lower_right]
    width = size[1] + 4
    corners = torch.tensor([0, 1, width, width + 1], dtype=torch.int32, device=device)
    rows = torch.add(left, top, alpha=width)[..., None] + corners
    return rows, torch.stack(weights, dim=-1)


def _pixel_before(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The framed pixels before places on one axis, int32, and how far behind them the places are.

    Places further outside than the frame are moved into it, where all is zero. A place at -1 still
    is between pixels: it has no value, but a gradient.
    """
    place = place.clamp(-2, size)
    before = place.detach().floor()
    # Clamped again, as the integer of a place that is no number may be any.
    return (before.int() + 2).clamp_(0, size + 2), place - before


class ModulatedDeformConv(nn.Module):
    """A modulated deformable convolution whose offsets and modulation come from outside."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        # In memory as the samples come, so that the CPU multiplies without a copy of the weights.
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        return modulated_deform_conv(
            x, offsets, modulation, self.weight, self.bias, stride=self.stride
        )
