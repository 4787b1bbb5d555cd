"""The registry of heads in which image and text read each other."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

FUSED_HEAD_REGISTRY = Registry("FUSED_HEAD")
FUSED_HEAD_REGISTRY.__doc__ = """
Fused heads: ``obj(cfg, input_shape, language_width)`` gives a module that maps
``(features, language)`` to fused features and fused language of the same shapes.
"""


def build_fused_head(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
) -> nn.Module:
    """Build the head that ``cfg.MODEL.FUSED_HEAD.NAME`` names."""
    return FUSED_HEAD_REGISTRY.get(cfg.MODEL.FUSED_HEAD.NAME)(cfg, input_shape, language_width)
