"""Swin Transformer with FPN: Detectron2's Swin, whose parameter names and results are GLIP's."""

from __future__ import annotations

from typing import Any, Self

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import nn

from glipv2_d2.config import complete_config
from glipv2_d2.layers.swin_inference import FastSwinStage
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn

# Detectron2 counts from stage 0 (stride 4), whose output is not used. It gets no norm: GLIP's
# checkpoints have none either (glip_reference.md 3).
_OUT_STAGES = (1, 2, 3)


class Swin(SwinTransformer):
    """Detectron2's Swin Transformer with outputs p1, p2, p3 of strides 8, 16, 32.

    Its stages are :class:`FastSwinStage`. Frozen stages stay in eval mode, as in GLIP; in
    Detectron2's class ``train()`` turns on their drop path again.
    """

    def __init__(self, *, activation_checkpointing: bool = False, **kwargs: Any) -> None:
        """
        Args:
            activation_checkpointing: recompute each block in the backward pass.
            kwargs: arguments of Detectron2's class.
        """
        super().__init__(**kwargs)
        self.layers: nn.ModuleList = nn.ModuleList(
            FastSwinStage(layer, activation_checkpointing=activation_checkpointing)
            for layer in self.layers
        )
        # Detectron2 froze the stages that these replace.
        self._freeze_stages()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._freeze_stages()
        return self


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the Swin Transformer of ``cfg.MODEL.SWIN`` with the FPN of ``cfg.MODEL.FPN``."""
    cfg = complete_config(cfg)
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
