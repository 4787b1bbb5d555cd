"""Modulated deformable convolution without a compiled Detectron2 operator.

On CUDA torchvision's kernel runs. On CPU the samples are gathered by ``embedding_bag`` (four
weighted rows each) and multiplied by the weights in one matrix product: several times faster than
torchvision's CPU kernel, most of all in the backward pass, and equal to it.

Shapes: x (N, C, H, W); offsets (N, 2 K, Ho, Wo), for tap k the pair (dy, dx) at channels 2k, 2k+1;
modulation (N, K, Ho, Wo); weight (Co, C, k, k); K = k * k taps, row-major.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def modulated_deform_conv(
    x: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
) -> Tensor:
    """Convolve samples taken at shifted places, each scaled by its modulation (DCNv2).

    Samples are bilinear; what lies outside the image counts as zero. Padding is k // 2. Always
    computed in fp32, as in the reference, also under autocast.

    Returns:
        (N, Co, Ho, Wo) in fp32 (fp64 for fp64 inputs).
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, offsets, modulation = x.to(dtype), offsets.to(dtype), modulation.to(dtype)
        weight, bias = weight.to(dtype), bias.to(dtype)
        if x.is_cuda:
            padding = weight.shape[-1] // 2
            return deform_conv2d(
                x, offsets, weight, bias, stride=stride, padding=padding, mask=modulation
            )
        return _gather_and_multiply(x, offsets, modulation, weight, bias, stride)


def _gather_and_multiply(
    x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    num_images, channels, height, width = x.shape
    num_taps, out_height, out_width = modulation.shape[-3:]
    rows, row_weights = _bilinear_rows(offsets, modulation, (height, width), stride)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (N H W, C)
    samples = F.embedding_bag(rows, table, mode="sum", per_sample_weights=row_weights)
    samples = samples.view(-1, num_taps * channels)  # (N Ho Wo, K C)
    kernel = weight.permute(2, 3, 1, 0).reshape(num_taps * channels, -1)  # (K C, Co)
    out = torch.addmm(bias, samples, kernel)
    return out.view(num_images, out_height, out_width, -1).permute(0, 3, 1, 2)


def _bilinear_rows(
    offsets: Tensor, modulation: Tensor, size: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample and their weights.

    Returns:
        rows: (N Ho Wo K, 4) int64 indices of a (N H W)-row table; any row where the weight is 0.
        weights: (N Ho Wo K, 4), bilinear times modulation, 0 outside the image.
    """
    height, width = size
    num_images, num_taps, out_height, out_width = modulation.shape
    kernel_size, device = math.isqrt(num_taps), offsets.device
    tap = torch.arange(num_taps, device=device)
    pixel_y = torch.arange(out_height, device=device)[:, None, None] * stride
    pixel_x = torch.arange(out_width, device=device)[:, None] * stride
    # (N, Ho, Wo, K) each
    delta = offsets.view(num_images, num_taps, 2, out_height, out_width).permute(0, 3, 4, 1, 2)
    y = delta[..., 0] + (pixel_y + tap // kernel_size - kernel_size // 2)
    x = delta[..., 1] + (pixel_x + tap % kernel_size - kernel_size // 2)
    top, left = y.detach().floor(), x.detach().floor()
    below, right = y - top, x - left
    weights = torch.stack(
        [(1 - below) * (1 - right), (1 - below) * right, below * (1 - right), below * right], dim=-1
    )
    # Far offsets could leave the range of integers: one pixel outside is as outside as any.
    top, left = top.clamp(-2, height).long(), left.clamp(-2, width).long()
    ys = torch.stack([top, top, top + 1, top + 1], dim=-1)
    xs = torch.stack([left, left + 1, left, left + 1], dim=-1)
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    weights = weights * modulation.permute(0, 2, 3, 1)[..., None] * inside
    image = torch.arange(num_images, device=device).view(-1, 1, 1, 1, 1) * (height * width)
    rows = image + ys.clamp(0, height - 1) * width + xs.clamp(0, width - 1)
    return rows.view(-1, 4), weights.reshape(-1, 4)


class ModulatedDeformConv(nn.Module):
    """A modulated deformable convolution whose offsets and modulation come from outside."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        return modulated_deform_conv(
            x, offsets, modulation, self.weight, self.bias, stride=self.stride
        )
