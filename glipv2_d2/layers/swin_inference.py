"""Faster stages for Detectron2's Swin Transformer, with its parameter names and results.

N: images. H, W: height and width of a feature map. C: channels. A: positions per attention window.
V: windows of a padded map.

Without gradients, a stage processes maps in chunks whose intermediate results fit in the cache of a
CPU, and computes window attention in fewer passes over the scores. Attention masks are cached.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.backbone.swin import (
    BasicLayer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.layers.packed_linear import prepared_module
from glipv2_d2.layers.tracing import fixed, is_tracing

# Elements of the largest tensor of a chunk: on a CPU intermediate results fit in the cache (8 MB),
# and peak memory is that of a chunk.
_MAX_CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}

# Map sizes whose masks a stage caches; the mask of a 200 x 334 map takes 13 MB.
_CACHED_MASKS = 2
# Detectron2's value: added to the scores of positions from different regions of a shifted map.
_MASKED_SCORE = -100.0


def rows_per_chunk(device: torch.device, elements_per_row: int) -> int:
    """How many rows of a tensor are processed at a time without gradients."""
    limit = _MAX_CHUNK_ELEMENTS.get(device.type)
    return sys.maxsize if limit is None else max(1, limit // elements_per_row)


class FastWindowAttention(WindowAttention):
    """Detectron2's window attention in fewer passes over the scores.

    Without gradients only: the fused attention of a GPU has none for the position bias. On a CPU,
    plain matrix products are used, because its fused attention takes half as long again for such
    small windows.
    """

    @classmethod
    def from_detectron2(cls, attention: WindowAttention) -> FastWindowAttention:
        """A copy of ``attention``, with its sizes and weights."""
        copy = cls(attention.dim, attention.window_size, attention.num_heads)
        copy.load_state_dict(attention.state_dict())
        return copy

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows of A positions each.

        Args:
            x: (N V, A, C), the windows of each image in order.
            mask: (V, A, A), added to the scores of the windows of each image.

        Returns:
            The shape of ``x``.
        """
        if torch.is_grad_enabled():
            return super().forward(x, mask)
        bias = self.relative_position_bias_table[self.relative_position_index]  # (A, A, heads)
        bias = bias.permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]  # (V, heads, A, A)
        # (3, N V, heads, A, d)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attend = self._attend_by_products if x.device.type == "cpu" else self._attend_fused
        return self.proj(attend(qkv, bias).transpose(1, 2).flatten(2))

    def _attend_by_products(self, qkv: Tensor, bias: Tensor) -> Tensor:
        query, key, value = qkv.contiguous()
        scores = query @ key.transpose(-1, -2)
        # Per image, as the masks repeat. One pass scales, adds and converts to the bias's dtype.
        per_image = scores.unflatten(0, (-1, len(bias) if bias.dim() == 4 else 1))
        weights = torch.add(bias, per_image, alpha=self.scale).softmax(dim=-1)
        return weights.flatten(0, 1).to(value.dtype) @ value

    def _attend_fused(self, qkv: Tensor, bias: Tensor) -> Tensor:
        query, key, value = qkv
        if bias.dim() == 4:
            bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype).expand(len(query), -1, -1, -1)
        )


class FastSwinBlock(nn.Module):
    """Detectron2's Swin block on (N, H, W, C) maps; in eval mode without gradients, in chunks."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        """
        Args:
            block: its submodules become those of this block; the attention is copied.
        """
        super().__init__()
        self.window_size: int = block.window_size
        self.shift_size: int = block.shift_size
        self.norm1 = block.norm1
        self.attn = FastWindowAttention.from_detectron2(block.attn)
        self.drop_path = block.drop_path
        self.norm2 = block.norm2
        self.mlp = block.mlp

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C) maps and the (V, A, A) mask of the shifted map -> maps of the same shape."""
        if torch.is_grad_enabled() or self.training or is_tracing():
            maps = maps + self.drop_path(self._window_attention(self.norm1(maps), mask))
            return maps + self.drop_path(self.mlp(self.norm2(maps)))
        maps = self._add_window_attention(maps, mask)
        positions = maps.flatten(0, 2)
        block_rows = rows_per_chunk(maps.device, self.mlp.fc1.out_features)
        expand = prepared_module(
            self.mlp.fc1, num_rows=len(positions), block_rows=block_rows, gelu=True
        )
        reduce = prepared_module(self.mlp.fc2, num_rows=len(positions), block_rows=block_rows)
        for chunk in positions.split(block_rows):
            chunk.add_(reduce(expand(self.norm2(chunk))))
        return maps

    def _window_attention(self, maps: Tensor, mask: Tensor) -> Tensor:
        height, width = map(fixed, maps.shape[1:3])
        window, shift = self.window_size, self.shift_size
        maps = F.pad(maps, (0, 0, 0, -width % window, 0, -height % window))
        size = tuple(map(fixed, maps.shape[1:3]))
        if shift:
            maps = maps.roll((-shift, -shift), dims=(1, 2))
        windows = window_partition(maps, window).flatten(1, 2)
        windows = self.attn(windows, mask if shift else None)
        maps = window_reverse(windows, window, *size)
        if shift:
            maps = maps.roll((shift, shift), dims=(1, 2))
        return maps[:, :height, :width].contiguous()

    def _add_window_attention(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Maps plus their window attention, computed in chunks of rows of windows."""
        normed, window, shift = self.norm1(maps), self.window_size, self.shift_size
        rows, columns = (_ShiftedAxis(size, window, shift) for size in maps.shape[1:3])
        shifted = normed.new_zeros(len(maps), rows.padded, columns.padded, maps.shape[3])
        slices = [(y, x) for y in rows.slices() for x in columns.slices()]
        for (y, shifted_y), (x, shifted_x) in slices:
            shifted[:, shifted_y, shifted_x] = normed[:, y, x]
        del normed

        windows_per_row = columns.padded // window
        elements = len(maps) * columns.padded * 3 * maps.shape[3]  # queries, keys and values
        height = max(window, rows_per_chunk(maps.device, elements) // window * window)
        for top in range(0, rows.padded, height):
            chunk = shifted[:, top : top + height]
            first = top // window * windows_per_row
            num_windows = chunk.shape[1] // window * windows_per_row
            windows = self.attn(
                window_partition(chunk, window).flatten(1, 2),
                mask[first : first + num_windows] if shift else None,
            )
            chunk.copy_(window_reverse(windows, window, *chunk.shape[1:3]))

        total = torch.empty_like(maps, memory_format=torch.contiguous_format)
        for (y, shifted_y), (x, shifted_x) in slices:
            torch.add(maps[:, y, x], shifted[:, shifted_y, shifted_x], out=total[:, y, x])
        return total


@dataclass(frozen=True)
class _ShiftedAxis:
    """An axis of a map that is padded to whole windows and rolled by ``-shift``."""

    size: int
    window: int
    shift: int

    @property
    def padded(self) -> int:
        return -(-self.size // self.window) * self.window

    def slices(self) -> list[tuple[slice, slice]]:
        """Pairs of slices: a part of the axis, and the same part of the rolled axis."""
        cut = min(self.shift, self.size)
        slices = [(slice(cut, self.size), slice(0, self.size - cut))]
        if cut:
            start = self.padded - self.shift
            slices.append((slice(0, cut), slice(start, start + cut)))
        return slices


class FastSwinStage(nn.Module):
    """Detectron2's BasicLayer, a stage of Swin blocks, with a cache of attention masks."""

    def __init__(self, layer: BasicLayer, *, activation_checkpointing: bool = False) -> None:
        """
        Args:
            layer: its submodules become those of this stage; the attention is copied.
            activation_checkpointing: recompute each block in the backward pass.
        """
        super().__init__()
        self.window_size: int = layer.window_size
        self.shift_size: int = layer.shift_size
        self.blocks = nn.ModuleList(FastSwinBlock(block) for block in layer.blocks)
        self.downsample = layer.downsample
        self.activation_checkpointing = activation_checkpointing
        self.masks: LRUCache[Any, Tensor] = LRUCache(_CACHED_MASKS)

    def forward(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Process (N, H W, C) positions.

        Returns:
            The output of the stage and its height and width, then the input of the next stage and
            its height and width.
        """
        height, width = fixed(height), fixed(width)
        mask = self.mask(height, width, x.device)
        maps = x.unflatten(1, (height, width))
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Detectron2's use_checkpoint does not set use_reentrant.
                maps = checkpoint(block, maps, mask, use_reentrant=False)
            else:
                maps = block(maps, mask)
        x = maps.flatten(1, 2)
        if self.downsample is None:
            return x, height, width, x, height, width
        down = self.downsample(x, height, width)
        return x, height, width, down, (height + 1) // 2, (width + 1) // 2

    def mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """The (V, A, A) mask of a shifted map; height and width are those before padding."""
        window, shift = self.window_size, self.shift_size
        height, width = (-(-size // window) * window for size in (height, width))
        return self.masks.tensor(
            (height, width), device, lambda: shift_mask(height, width, window, shift, device)
        )


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """The (V, A, A) values that are added to the scores within the windows of a shifted map.

    The shift moves opposite edges of the map next to each other. Positions from different regions
    must not attend to each other.

    Args:
        height, width: of the map, padded to multiples of ``window``.
    """

    def regions_of_axis(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - shift)

    regions = 3 * regions_of_axis(height)[:, None] + regions_of_axis(width)
    windows = window_partition(regions[None, ..., None], window).flatten(1)
    return (windows[:, None] != windows[:, :, None]) * _MASKED_SCORE
