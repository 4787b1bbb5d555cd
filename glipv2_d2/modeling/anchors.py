"""One square anchor per location of every feature level."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from glipv2_d2.layers.lru_cache import LRUCache

# 32 input shapes of five levels.
MAX_CACHED_LEVELS = 160


class AnchorGenerator(nn.Module):
    """GLIP's anchors: squares with inclusive corners, ``scale`` strides wide, one per location.

    The anchor of location 0 of stride s is centred on (s - 1) / 2, the middle of the s pixels that
    the location covers: (-28, -28, 35, 35) for s = 8, scale 8 (glip_reference.md 11). Detectron2's
    ``DefaultAnchorGenerator`` has a single offset, in units of the stride, for all levels. With 0.5
    it is half a pixel off, and (s - 1) / (2 s) differs between levels.

    The anchors of a shape are computed once and cached, outside the state dict.
    """

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        """
        Args:
            strides: pixels of the network input per location, one per level.
            scale: width of an anchor in strides of its level.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.scale = scale
        self._anchors: LRUCache[Hashable, Tensor] = LRUCache(MAX_CACHED_LEVELS)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            features: per level (N, C, H_i, W_i). Only shapes and the device matter.

        Returns:
            Per level (H_i * W_i, 4) float32, row-major, XYXY with inclusive corners in pixels of
            the network input. Shared between calls: read-only.
        """
        assert len(features) == len(self.strides), (len(features), self.strides)
        return [
            self._anchors_of(stride, feature)
            for stride, feature in zip(self.strides, features, strict=True)
        ]

    def _anchors_of(self, stride: int, feature: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        return self._anchors.tensor(
            (stride, height, width),
            feature.device,
            lambda: _grid_anchors(stride, self.scale, height, width, feature.device),
        )


def _grid_anchors(
    stride: int, scale: float, height: int, width: int, device: torch.device
) -> Tensor:
    """(height * width, 4): the anchors of one level."""
    center, half_extent = (stride - 1) / 2, (stride * scale - 1) / 2
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device) * stride + center,
        torch.arange(width, dtype=torch.float32, device=device) * stride + center,
        indexing="ij",
    )
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([centers - half_extent, centers + half_extent], dim=-1)
