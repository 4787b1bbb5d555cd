"""Swin Transformer with FPN: Detectron2's Swin, whose names and numbers are GLIP's."""

from __future__ import annotations

import functools
import threading
from typing import Any, Self

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import (
    BasicLayer,
    Mlp,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.modeling.bounded_cache import BoundedCache

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


def bands(x: Tensor, numbers_per_row: int) -> tuple[Tensor, ...]:
    """The rows of ``x`` in parts whose largest tensor has a limited size."""
    limit = _MAX_BAND_NUMBERS.get(x.device.type)
    return (x,) if limit is None else x.split(max(1, limit // numbers_per_row))


class BandedMlp(Mlp):
    """Detectron2's feed-forward network; without gradients it takes positions band by band."""

    @classmethod
    def like(cls, mlp: Mlp) -> BandedMlp:
        """One with the sizes and the weights of ``mlp``."""
        banded = cls(mlp.fc1.in_features, mlp.fc1.out_features, drop=mlp.drop.p)
        banded.load_state_dict(mlp.state_dict())
        return banded

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) -> the same shape."""
        if torch.is_grad_enabled():
            return super().forward(x)
        parts = [
            super(BandedMlp, self).forward(band)
            for band in bands(x.flatten(0, 1), self.fc1.out_features)
        ]
        return torch.cat(parts).view_as(x)


class FusedWindowAttention(WindowAttention):
    """Detectron2's window attention, with the same numbers from one fused operation.

    Only where no gradient is asked for: the fused operations have none for the position bias.
    """

    @classmethod
    def like(cls, attention: WindowAttention) -> FusedWindowAttention:
        """One with the sizes and the weights of ``attention``."""
        fused = cls(attention.dim, attention.window_size, attention.num_heads)
        fused.load_state_dict(attention.state_dict())
        return fused

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
        bias = bias.permute(2, 0, 1)[None]
        attended, start = [], 0
        for band in bands(x, x.shape[1] * 3 * self.dim):
            band_bias = bias
            if mask is not None:
                windows = torch.arange(start, start + len(band), device=x.device) % len(mask)
                band_bias = bias + mask[windows, None]
            attended.append(self._attend(band, band_bias))
            start += len(band)
        return torch.cat(attended)

    def _attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """(W, A, C) windows with a bias of (1 or W, H, A, A) -> the shape of ``windows``."""
        query, key, value = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=bias.to(query.dtype).expand(len(windows), -1, -1, -1),
        )
        return self.proj(attended.transpose(1, 2).flatten(2))


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


class ThreadSafeBlock(SwinTransformerBlock):
    """Detectron2's block, which learns the size of its map from attributes that its layer sets."""

    H = _SizeOfThread()
    W = _SizeOfThread()


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

    masks: BoundedCache[Any, Tensor]

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
            layer.masks = BoundedCache(_CACHED_MASKS)
            for block in layer.blocks:
                block.__class__ = ThreadSafeBlock
                block.attn = FusedWindowAttention.like(block.attn)
                block.mlp = BandedMlp.like(block.mlp)
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
