"""DropBlock: drop squares of a feature map in all channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropBlock(nn.Module):
    """Set random squares of a map to zero in training and scale up the rest (arXiv:1810.12890).

    As in the released GLIP code, which differs from the paper in two points: seeds may lie at the
    border, which cuts their squares, and gamma is ``prob / block_size**2``.
    """

    def __init__(self, *, prob: float, block_size: int) -> None:
        """
        Args:
            prob: approximate fraction of a map that is dropped, 0 <= prob < 1.
            block_size: side of a square in cells of the map, odd.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"prob is {prob}; DropBlock needs a probability in [0, 1)")
        if block_size < 1 or block_size % 2 == 0:
            raise ValueError(f"block_size is {block_size}; DropBlock needs an odd, positive one")
        self.prob = prob
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W). The identity in eval mode."""
        if not self.training or self.prob == 0:
            return x
        gamma = self.prob / self.block_size**2
        num_images, _, height, width = x.shape
        seeds = torch.rand(num_images, 1, height, width, device=x.device) < gamma
        keep = 1 - F.max_pool2d(
            seeds.float(), kernel_size=self.block_size, stride=1, padding=self.block_size // 2
        )
        # One scale for the batch. The clamp avoids NaN if every cell is dropped.
        scale = keep.numel() / keep.sum().clamp(min=1)
        return x * (keep * scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"prob={self.prob}, block_size={self.block_size}"
