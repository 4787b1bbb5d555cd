"""Swin Transformer with FPN: Detectron2's Swin, whose names and numbers are GLIP's."""

from __future__ import annotations

import functools
import sys
import threading
from dataclasses import dataclass
from typing import Any, Self

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import (
    BasicLayer,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn

# Detectron2 counts from stage 0 (stride 4). That one's output is not used, so it gets no norm:
# GLIP's files have none either (GLIP spec 3).
_OUT_STAGES = (1, 2, 3)

# Numbers of a band's largest tensor where no gradient is asked for: what lies between two products
# then stays in the cache of a CPU (8 MB), and the peak memory is that of a band.
_MAX_BAND_NUMBERS = {"cpu": 2**21, "cuda": 2**27}

# Sizes of maps whose masks a stage keeps; one of 200 x 334 has 13 MB.
_CACHED_MASKS = 2
# What the original adds to the scores of positions that do not belong together.
_APART = -100.0


def rows_per_band(device: torch.device, numbers_per_row: int) -> int:
    """How many rows of a tensor are worked on at a time where no gradient is asked for."""
    limit = _MAX_BAND_NUMBERS.get(device.type)
    return sys.maxsize if limit is None else max(1, limit // numbers_per_row)


class InferenceWindowAttention(WindowAttention):
    """Detectron2's window attention, with the same numbers from fewer passes over the scores.

    Only where no gradient is asked for: the fused operation of a GPU has none for the position
    bias. A CPU multiplies copies of queries, keys and values; its fused operation takes half as
    long again with so small windows.
    """

    @classmethod
    def like(cls, attention: WindowAttention) -> InferenceWindowAttention:
        """One with the sizes and the weights of ``attention``."""
        lean = cls(attention.dim, attention.window_size, attention.num_heads)
        lean.load_state_dict(attention.state_dict())
        return lean

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows of A positions each.

        Args:
            x: (N W, A, C), the W windows of each image one after the other.
            mask: (W, A, A), added to the scores of an image's windows.

        Returns:
            The shape of ``x``.
        """
        if torch.is_grad_enabled():
            return super().forward(x, mask)
        bias = self.relative_position_bias_table[self.relative_position_index]  # (A, A, H)
        bias = bias.permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]  # (W, H, A, A)
        # (3, N W, H, A, d)
        parts = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attend = self._attend_by_products if x.device.type == "cpu" else self._attend_fused
        return self.proj(attend(parts, bias).transpose(1, 2).flatten(2))

    def _attend_by_products(self, parts: Tensor, bias: Tensor) -> Tensor:
        query, key, value = parts.contiguous()
        scores = query @ key.transpose(-1, -2)
        # Per image, as masks repeat. One pass scales, adds and goes on in the type of the bias.
        per_image = scores.unflatten(0, (-1, len(bias) if bias.dim() == 4 else 1))
        weights = torch.add(bias, per_image, alpha=self.scale).softmax(dim=-1)
        return weights.flatten(0, 1).to(value.dtype) @ value

    def _attend_fused(self, parts: Tensor, bias: Tensor) -> Tensor:
        query, key, value = parts
        if bias.dim() == 4:
            bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype).expand(len(query), -1, -1, -1)
        )


class _SizeOfThread:
    """One side of the map that a block is about to see; each thread reads what it wrote itself.

    A backward pass may recompute a block in a thread that wrote nothing: it reads the last value.
    """

    written = threading.local()

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: nn.Module, owner: type) -> int | None:
        return self.written.__dict__.get(self._key(block), block.__dict__.get(self.name))

    def __set__(self, block: nn.Module, value: int) -> None:
        block.__dict__[self.name] = value
        self.written.__dict__[self._key(block)] = value

    def _key(self, block: nn.Module) -> str:
        return f"{self.name} of {id(block)}"


class LeanBlock(SwinTransformerBlock):
    """Detectron2's block; asked without gradients it takes positions band by band.

    Detectron2's layer tells a block the size of its map in attributes; these know threads apart.
    """

    H = _SizeOfThread()
    W = _SizeOfThread()

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """(N, H W, C), and the mask of a shifted map -> the shape of ``x``."""
        if torch.is_grad_enabled() or self.training:
            return super().forward(x, mask_matrix)
        x = self._add_attended(x.unflatten(1, (self.H, self.W)), mask_matrix).flatten(1, 2)
        positions = x.flatten(0, 1)
        for band in positions.split(rows_per_band(x.device, self.mlp.fc1.out_features)):
            band.add_(self.mlp(self.norm2(band)))
        return x

    def _add_attended(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C) with what the windows of the shifted map tell; (V, A, A) mask."""
        normed, window, shift = self.norm1(maps), self.window_size, self.shift_size
        rows, columns = (_Shifted(size, window, shift) for size in maps.shape[1:3])
        shifted = normed.new_zeros(len(maps), rows.padded, columns.padded, maps.shape[3])
        places = [(y, x) for y in rows.moves() for x in columns.moves()]
        for (y, to_y), (x, to_x) in places:
            shifted[:, to_y, to_x] = normed[:, y, x]
        del normed

        windows_per_row = columns.padded // window
        numbers = len(maps) * columns.padded * 3 * self.dim  # of queries, keys and values
        height = max(window, rows_per_band(maps.device, numbers) // window * window)
        for top in range(0, rows.padded, height):
            band = shifted[:, top : top + height]
            first = top // window * windows_per_row
            size = band.shape[1] // window * windows_per_row
            attended = self.attn(
                window_partition(band, window).flatten(1, 2),
                mask[first : first + size] if shift else None,
            )
            band.copy_(window_reverse(attended, window, *band.shape[1:3]))

        total = torch.empty_like(maps, memory_format=torch.contiguous_format)
        for (y, to_y), (x, to_x) in places:
            torch.add(maps[:, y, x], shifted[:, to_y, to_x], out=total[:, y, x])
        return total


@dataclass(frozen=True)
class _Shifted:
    """One axis of a map, padded to whole windows and rolled by ``shift`` to the front."""

    size: int
    window: int
    shift: int

    @property
    def padded(self) -> int:
        return -(-self.size // self.window) * self.window

    def moves(self) -> list[tuple[slice, slice]]:
        """Parts of the axis and where they lie when it is rolled."""
        cut = min(self.shift, self.size)
        moves = [(slice(cut, self.size), slice(0, self.size - cut))]
        if cut:
            start = self.padded - self.shift
            moves.append((slice(0, cut), slice(start, start + cut)))
        return moves


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(W, A, A), what is added to the scores within the W windows of a shifted map.

    Shifting brings opposite edges of the map together; positions of different regions stay apart.

    Args:
        height, width: of the map, padded to multiples of ``window``.
    """

    def parts(size: int) -> Tensor:
        places = torch.arange(size, device=device)
        return (places >= size - window).long() + (places >= size - shift)

    regions = 3 * parts(height)[:, None] + parts(width)
    windows = window_partition(regions[None, ..., None], window).flatten(1)
    return (windows[:, None] != windows[:, :, None]) * _APART


class MaskKeepingLayer(BasicLayer):
    """Detectron2's stage, which keeps the masks of the sizes that it saw last."""

    masks: LRUCache[Any, Tensor]

    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, int, int, Tensor, int, int]:
        """(N, H W, C) -> the same with its size, then what the next stage reads with its size."""
        mask = self.mask(H, W, x.device)
        for block in self.blocks:
            block.H, block.W = H, W
            x = block(x, mask)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2

    def mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """(W, A, A) of a map that is not padded yet."""
        window, shift = self.window_size, self.shift_size
        height, width = (-(-size // window) * window for size in (height, width))
        return self.masks.tensor(
            (height, width), device, lambda: shift_mask(height, width, window, shift, device)
        )


class Swin(SwinTransformer):
    """Detectron2's Swin Transformer with outputs p1, p2, p3 of strides 8, 16, 32.

    Frozen stages stay in eval mode, as in GLIP; in Detectron2's class ``train()`` wakes their drop
    path up again.
    """

    def __init__(self, *, activation_checkpointing: bool = False, **kwargs: Any) -> None:
        """
        Args:
            activation_checkpointing: recompute each block in the backward pass.
            kwargs: Detectron2's.
        """
        super().__init__(**kwargs)
        for layer in self.layers:
            layer.__class__ = MaskKeepingLayer
            layer.masks = LRUCache(_CACHED_MASKS)
            for block in layer.blocks:
                block.__class__ = LeanBlock
                block.attn = InferenceWindowAttention.like(block.attn)
                if activation_checkpointing:
                    # Detectron2's use_checkpoint leaves torch to choose use_reentrant.
                    block.forward = functools.partial(
                        checkpoint, block.forward, use_reentrant=False
                    )
        # Again: the new parts do not know yet whether their stage is frozen.
        self._freeze_stages()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._freeze_stages()
        return self


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the Swin Transformer of ``cfg.MODEL.SWIN`` with the FPN of ``cfg.MODEL.FPN``."""
    swin = cfg.MODEL.SWIN
    bottom_up = Swin(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO,
        drop_path_rate=swin.DROP_PATH_RATE,
        out_indices=_OUT_STAGES,
        frozen_stages=swin.FROZEN_STAGES,
        activation_checkpointing=cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING,
    )
    return build_grounding_fpn(cfg, bottom_up)
