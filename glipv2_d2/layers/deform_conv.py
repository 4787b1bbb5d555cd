"""Modulated deformable convolution without Detectron2's compiled operator.

On CUDA torchvision's kernel is used, and in ONNX its operator. On CPU, ``embedding_bag`` gathers
the samples (four weighted rows each), which are multiplied by the weights in matrix products. This
is several times as fast as torchvision's CPU kernel, most of all in the backward pass, with equal
results. The samples, nine times the size of the map, are processed in blocks of rows; the backward
pass gathers them again. Channels-last maps are neither copied on input nor on output.

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

from glipv2_d2.layers.packed_linear import prepared_linear
from glipv2_d2.layers.tracing import is_exporting_onnx, is_tracing

# Samples per block: 19 MB at 256 channels, which stay in the cache until they are multiplied. With
# half as many the matrix products are too small to be fast.
_BLOCK_SAMPLES = 18432
# In the backward pass every block computes a gradient of the whole image, so blocks are larger.
_BACKWARD_BLOCK_SAMPLES = 2**16


def modulated_deform_conv(
    x: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
) -> Tensor:
    """Convolve samples at offset locations, each scaled by its modulation (DCNv2).

    Samples are interpolated bilinearly, with zeros outside the image. Padding is k // 2. Computed
    in fp32, as in the reference, including under autocast. Exception: bf16 autocast on a CPU
    computes the products in bf16, which is several times as fast there.

    Returns:
        (N, Co, Ho, Wo) in fp32 (fp64 for fp64 inputs), or bf16 as described above.
    """
    in_bf16 = x.device.type == "cpu" and _autocast_is_bf16()
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Sampling locations are never rounded.
        offsets, modulation = offsets.to(dtype), modulation.to(dtype)
        if in_bf16:
            dtype = torch.bfloat16
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        if x.is_cuda or is_exporting_onnx():
            padding = int(weight.shape[-1]) // 2
            return deform_conv2d(
                x, offsets, weight, bias, stride=stride, padding=padding, mask=modulation
            )
        if is_tracing():
            return _gather_at_once(x, offsets, modulation, weight, bias, stride)
        if torch.is_grad_enabled():
            return _with_gradients(x, offsets, modulation, weight, bias, stride)
        return _gather_and_multiply(x, offsets, modulation, weight, bias, stride)


def _autocast_is_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def _gather_and_multiply(
    x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    num_images, _, height, width = x.shape
    kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (Co, K C)
    pixels = _pad(x, x.dtype)
    rows, row_weights = _bilinear_rows(offsets, modulation, (height, width), stride)
    rows, row_weights = rows.flatten(1, 2), row_weights.flatten(1, 2).to(x)  # (N, Ho Wo, K, 4)

    block_size = max(1, _BLOCK_SAMPLES // modulation.shape[1])
    num_locations = rows.shape[1]
    multiply = prepared_linear(kernel, bias, num_rows=num_locations, block_rows=block_size)
    out = x.new_empty(num_images, num_locations, len(bias))
    for image in range(num_images):
        table = pixels[image].flatten(0, 1)
        for start in range(0, num_locations, block_size):
            block = slice(start, start + block_size)
            samples = _gather(table, rows[image, block], row_weights[image, block])
            out[image, block] = multiply(samples.view(-1, kernel.shape[1]))
    return out.unflatten(1, modulation.shape[-2:]).permute(0, 3, 1, 2)


def _gather_at_once(
    x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """:func:`_gather_and_multiply` in plain operations, with all samples of an image in memory."""
    kernel = weight.permute(0, 2, 3, 1).flatten(1).t()  # (K C, Co)
    pixels = F.pad(x, (2, 2, 2, 2)).permute(0, 2, 3, 1).flatten(1, 2)
    rows, row_weights = _bilinear_rows(offsets, modulation, (x.shape[-2], x.shape[-1]), stride)
    row_weights = row_weights.to(x)
    maps = []
    for table, image_rows, image_weights in zip(
        pixels.unbind(), rows.unbind(), row_weights.unbind(), strict=True
    ):
        samples = sum(
            table[image_rows[..., corner].long()] * image_weights[..., corner, None]
            for corner in range(4)
        )
        assert isinstance(samples, Tensor)
        maps.append(samples.flatten(2) @ kernel + bias)  # (Ho, Wo, Co)
    return torch.stack(maps).permute(0, 3, 1, 2)


def _blocks(modulation: Tensor, max_samples: int) -> Iterator[tuple[int, slice]]:
    """Pairs of image and rows of its output with a limited number of samples."""
    num_images, num_taps, height, width = modulation.shape
    block_height = max(1, max_samples // (num_taps * width))
    for image in range(num_images):
        for top in range(0, height, block_height):
            yield image, slice(top, top + block_height)


# A compiler would break its graph in many places of the backward pass.
@torch.compiler.disable
def _with_gradients(*args: Any) -> Tensor:
    return _GatherAndMultiply.apply(*args)


class _GatherAndMultiply(torch.autograd.Function):
    """:func:`_gather_and_multiply` with a backward pass that recomputes the samples."""

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
        # Sampled in full precision: the gradient of a pixel is a sum over many samples.
        pixels = _pad(x, offsets.dtype)
        d_pixels = torch.zeros_like(pixels)
        d_offsets, d_modulation = torch.zeros_like(offsets), torch.zeros_like(modulation)
        d_kernel = torch.zeros_like(kernel, dtype=offsets.dtype)
        for image, block in _blocks(modulation, _BACKWARD_BLOCK_SAMPLES):
            d_block = d_out[image, block].flatten(0, 1)
            with torch.enable_grad():
                leaves = (
                    pixels[image].flatten(0, 1).detach().requires_grad_(),
                    offsets[image : image + 1, :, block].detach().requires_grad_(),
                    modulation[image : image + 1, :, block].detach().requires_grad_(),
                )
                rows, row_weights = _bilinear_rows(
                    *leaves[1:], x.shape[-2:], ctx.stride, first_row=block.start
                )
                samples = _gather(leaves[0], rows, row_weights)
            d_samples = (d_block @ kernel).view(samples.shape).to(samples.dtype)
            d_table, d_block_offsets, d_block_modulation = torch.autograd.grad(
                samples, leaves, d_samples
            )
            d_pixels[image].view_as(d_table).add_(d_table)
            d_offsets[image : image + 1, :, block] = d_block_offsets
            d_modulation[image : image + 1, :, block] = d_block_modulation
            if ctx.needs_input_grad[3]:
                d_kernel += d_block.t() @ samples.detach().to(x.dtype).view(len(d_block), -1)
        d_weight = d_kernel.view_as(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (
            d_pixels[:, 2:-2, 2:-2].permute(0, 3, 1, 2).to(x.dtype),
            d_offsets,
            d_modulation,
            d_weight.to(weight.dtype),
            d_out.sum(dim=(0, 1, 2)),
            None,
        )


def _pad(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pad each map with two pixels of zeros, (N, C, H, W) -> (N, H + 4, W + 4, C)."""
    num_images, channels, height, width = x.shape
    padded = x.new_empty(num_images, height + 4, width + 4, channels, dtype=dtype)
    padded[:, 2:-2, 2:-2] = x.permute(0, 2, 3, 1)
    for border in (padded[:, :2], padded[:, -2:], padded[:, :, :2], padded[:, :, -2:]):
        border.zero_()
    return padded


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
    """Compute the four pixels around each sample and their weights.

    Args:
        offsets, modulation: of consecutive rows of the output.
        size: (H, W) of the image.
        first_row: index of the first of these rows.

    Returns:
        rows: (N, Ho, Wo, K, 4) int32, indices into the (H + 4) (W + 4) pixels of an image padded by
            :func:`_pad`.
        weights: (N, Ho, Wo, K, 4), bilinear weights times modulation.
    """
    num_taps, out_height, out_width = modulation.shape[-3:]
    kernel_size, device = math.isqrt(num_taps), offsets.device
    # All in the dtype of the offsets: operations on mixed dtypes first convert a whole copy.
    arange = functools.partial(torch.arange, dtype=offsets.dtype, device=device)
    tap = arange(kernel_size) - kernel_size // 2
    pixel_y = (arange(out_height)[:, None, None] + first_row) * stride
    pixel_x = arange(out_width)[:, None] * stride
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


def _pixel_before(location: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split locations on one axis into the int32 index of a padded pixel and a fraction.

    Locations beyond the padding are clamped to it, where all pixels are zero. A location of -1 is
    within the padding: its value is zero, but not its gradient.
    """
    location = location.clamp(-2, size)
    before = location.detach().floor()
    # Clamped again, because NaN may convert to any integer.
    return (before.int() + 2).clamp_(0, size + 2), location - before


class ModulatedDeformConv(nn.Module):
    """A modulated deformable convolution; offsets and modulation are inputs."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        # In the memory order of the samples, so that a CPU multiplies without copying the weights.
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        return modulated_deform_conv(
            x, offsets, modulation, self.weight, self.bias, stride=self.stride
        )
