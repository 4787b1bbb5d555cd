"""A tiny model with the parts of the small model, in the configurations that tests need."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.models import tiny_cfg

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.projects import add_project_configs

PHRASES = ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")
UNFUSED_TEXT = (*PHRASES, "MODEL.GROUNDING.SCORE_FUSED_TEXT", False)
REGIONS = (
    *("MODEL.TEXT_TASKS.NAME", "RegionTextTasks", "MODEL.REGION_ENCODER.NUM_REGIONS", 4),
    *("MODEL.REGION_ENCODER.HEADS", 2, "MODEL.REGION_ENCODER.FFN_DIM", 32),
    *("MODEL.REGION_ENCODER.DROPOUT", 0.0),
)
NAMES_FILE = "package:glipv2_mini/assets/mini_names.txt"
NAMED = (*REGIONS, *UNFUSED_TEXT, "MODEL.REGION_ENCODER.NAMES_FILE", NAMES_FILE)
POINTERS = (
    *(*NAMED, "MODEL.CAPTION.NAME", "PointerCaptionHead"),
    *("MODEL.ANSWER.NAME", "PointerAnswerHead"),
)


def mini_cfg(*opts: Any) -> CfgNode:
    """:func:`~helpers.models.tiny_cfg` with the keys of the small model."""
    cfg = tiny_cfg()
    add_project_configs(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def mini_model(*opts: Any) -> GLIPv2:
    """The tiny model in evaluation mode; random weights from a fixed seed."""
    torch.manual_seed(0)
    return build_model(mini_cfg(*opts)).eval()
