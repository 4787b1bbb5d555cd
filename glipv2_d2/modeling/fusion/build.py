"""The registry of fused heads."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from glipv2_d2.modeling.fusion.base import FusedHead
from glipv2_d2.modeling.registry import build_part

FUSED_HEAD_REGISTRY = Registry("FUSED_HEAD")
FUSED_HEAD_REGISTRY.__doc__ = """
Registry of fused heads. ``obj(cfg, input_shape, language_dim)`` returns a
:class:`~glipv2_d2.modeling.fusion.base.FusedHead`. ``input_shape`` describes the pyramid, finest
level first; ``language_dim`` is the number of channels of the text features.
"""


def build_fused_head(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
) -> FusedHead:
    """Build the head that ``cfg.MODEL.FUSED_HEAD.NAME`` selects."""
    name, key = cfg.MODEL.FUSED_HEAD.NAME, "MODEL.FUSED_HEAD.NAME"
    return build_part(FUSED_HEAD_REGISTRY, name, FusedHead, key, cfg, input_shape, language_dim)
