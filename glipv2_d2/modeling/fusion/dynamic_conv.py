"""DyConv, the block of the dynamic head: scale-, spatial- and task-aware attention on a pyramid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.deform_conv import ModulatedDeformConv
from glipv2_d2.layers.dynamic_relu import DynamicReLU, map_mean
from glipv2_d2.layers.initialization import init_prediction

KERNEL_SIZE = 3
NUM_TAPS = KERNEL_SIZE**2


class DeformConvNorm(nn.Module):
    """A branch of DyConv: deformable convolution, then group normalisation."""

    def __init__(self, channels: int, *, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv = ModulatedDeformConv(channels, channels, kernel_size=KERNEL_SIZE, stride=stride)
        self.norm = nn.GroupNorm(num_groups, channels)

    def forward(self, x: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        return self.norm(self.conv(x, offsets, modulation))


class DynamicConv(nn.Module):
    """Deformable convolutions of each level, its coarser and its finer neighbour, averaged.

    All three branches use the offsets and modulations predicted from the level itself. Source: the
    released GLIP (glip_reference.md 9).
    """

    def __init__(self, *, channels: int, num_groups: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 3 * NUM_TAPS, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.coarser = DeformConvNorm(channels, stride=1, num_groups=num_groups)
        self.same = DeformConvNorm(channels, stride=1, num_groups=num_groups)
        self.finer = DeformConvNorm(channels, stride=2, num_groups=num_groups)
        self.scale_attention = nn.Conv2d(channels, 1, kernel_size=1)
        init_prediction(self.scale_attention)
        self.dynamic_relu = DynamicReLU(channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map a pyramid, finest level first, (N, C, H_i, W_i) each, to one of the same shapes."""
        return [self._forward_level(features, level) for level in range(len(features))]

    def _forward_level(self, features: list[Tensor], level: int) -> Tensor:
        prediction = self.offset(features[level])
        # Converted once for all branches: sampling locations need fp32 in any precision.
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        offsets = prediction[:, : 2 * NUM_TAPS]
        modulation = prediction[:, 2 * NUM_TAPS :].sigmoid()
        branches = [self.same(features[level], offsets, modulation)]
        if level > 0:
            branches.append(self.finer(features[level - 1], offsets, modulation))
        if level + 1 < len(features):
            size = features[level + 1].shape[-2:]
            coarser = self.coarser(
                features[level + 1],
                reinterpret_memory(offsets, size),
                reinterpret_memory(modulation, size),
            )
            branches.append(
                F.interpolate(
                    coarser, size=features[level].shape[-2:], mode="bilinear", align_corners=True
                )
            )
        return self.dynamic_relu(self._scale_attention(branches))

    def _scale_attention(self, branches: list[Tensor]) -> Tensor:
        """The mean of the branches, each weighted by a gate computed from its global average."""
        weights = [
            F.hardsigmoid(F.relu(self.scale_attention(map_mean(branch)[..., None, None])))
            / len(branches)
            for branch in branches
        ]
        mean = branches[0] * weights[0]
        for branch, weight in zip(branches[1:], weights[1:], strict=True):
            # Fused: a separate product and sum would each pass over the map.
            mean = torch.addcmul(mean, branch, weight)
        return mean


def reinterpret_memory(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Reinterpret the memory of (N, K, H, W) maps as (N, K, *size), per image from its start.

    The reference passes the offsets of a level to the convolution on the next coarser one. Its
    kernel ignores their shape and indexes the memory of the finer map as if it had the coarser
    size. The released weights were trained with this, so it is part of the model
    (glip_reference.md 9.1). ``size`` must not be larger than the maps.

    >>> reinterpret_memory(torch.arange(16.).view(1, 1, 4, 4), (2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    num_images, num_maps = maps.shape[:2]
    count = num_maps * math.prod(size)
    num_used = math.ceil(count / math.prod(maps.shape[2:]))
    flat = maps[:, :num_used].flatten(1)[:, :count]
    return flat.reshape(num_images, num_maps, *size)
