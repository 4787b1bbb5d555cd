"""DyConv: the dynamic head's block over a pyramid (scale-, spatial- and task-aware attention)."""

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
    """Each level gathers from itself, the coarser and the finer level (GLIP spec 9).

    The offsets and modulations of a level steer all three branches of that level.
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
        """Finest level first, (N, C, H_i, W_i) each; the same shapes come back."""
        return [self._forward_level(features, level) for level in range(len(features))]

    def _forward_level(self, features: list[Tensor], level: int) -> Tensor:
        steering = self.offset(features[level])
        # Once for all branches, whose places are precise whatever the products are computed in.
        steering = steering.to(torch.promote_types(steering.dtype, torch.float32))
        offsets = steering[:, : 2 * NUM_TAPS]
        modulation = steering[:, 2 * NUM_TAPS :].sigmoid()
        branches = [self.same(features[level], offsets, modulation)]
        if level > 0:
            branches.append(self.finer(features[level - 1], offsets, modulation))
        if level + 1 < len(features):
            size = features[level + 1].shape[-2:]
            gathered = self.coarser(
                features[level + 1], reread_flat(offsets, size), reread_flat(modulation, size)
            )
            branches.append(
                F.interpolate(
                    gathered, size=features[level].shape[-2:], mode="bilinear", align_corners=True
                )
            )
        return self.dynamic_relu(self._weigh(branches))

    def _weigh(self, branches: list[Tensor]) -> Tensor:
        """The mean of the branches, each scaled by how much its own average says it matters."""
        weights = [
            F.hardsigmoid(F.relu(self.scale_attention(map_mean(branch)[..., None, None])))
            / len(branches)
            for branch in branches
        ]
        mean = branches[0] * weights[0]
        for branch, weight in zip(branches[1:], weights[1:], strict=True):
            # One pass over the map, where a product and a sum would take two.
            mean = torch.addcmul(mean, branch, weight)
        return mean


def reread_flat(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Read the memory of (N, K, H, W) maps as (N, K, *size), the first K * size numbers of each.

    The reference hands the offsets of a level to the convolution on the next coarser one, and its
    kernel never looks at their shape: it reads the finer map's memory as if it had the coarser
    size. The released weights were trained with this, so it is part of the model (GLIP spec
    9.1). ``size`` may not be larger than the maps'.

    >>> reread_flat(torch.arange(16.).view(1, 1, 4, 4), (2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    num_images, num_maps = maps.shape[:2]
    count = num_maps * math.prod(size)
    num_read = math.ceil(count / math.prod(maps.shape[2:]))
    flat = maps[:, :num_read].flatten(1)[:, :count]
    return flat.reshape(num_images, num_maps, *size)
