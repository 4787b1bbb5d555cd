"""The registry of language backbones."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

LANGUAGE_BACKBONE_REGISTRY = Registry("LANGUAGE_BACKBONE")
LANGUAGE_BACKBONE_REGISTRY.__doc__ = """
Language backbones: ``obj(cfg)`` gives a module that maps a TokenBatch to TextFeatures and says
the width of its features in the attribute ``width``, and in ``vocab_size`` how many ids it knows.
One that is to describe images also reads TokenBatches that are ``causal``, and in pieces:
``read_on(input_ids, past)`` as of BertLanguageBackbone.
"""


def build_language_backbone(cfg: CfgNode) -> Any:
    """Build the language backbone that ``cfg.MODEL.LANGUAGE_BACKBONE.NAME`` names."""
    return LANGUAGE_BACKBONE_REGISTRY.get(cfg.MODEL.LANGUAGE_BACKBONE.NAME)(cfg)
