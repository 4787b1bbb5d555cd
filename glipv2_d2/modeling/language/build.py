"""The registry of language backbones."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.modeling.registry import build_part

LANGUAGE_BACKBONE_REGISTRY = Registry("LANGUAGE_BACKBONE")
LANGUAGE_BACKBONE_REGISTRY.__doc__ = """
Language backbones: ``obj(cfg)`` returns a :class:`~glipv2_d2.modeling.language.LanguageBackbone`.
"""


def build_language_backbone(cfg: CfgNode) -> LanguageBackbone:
    """Build the language backbone ``cfg.MODEL.LANGUAGE_BACKBONE.NAME``.

    Raises:
        TypeError: the registered class is not a :class:`LanguageBackbone`.
    """
    name, key = cfg.MODEL.LANGUAGE_BACKBONE.NAME, "MODEL.LANGUAGE_BACKBONE.NAME"
    return build_part(LANGUAGE_BACKBONE_REGISTRY, name, LanguageBackbone, key, cfg)
