"""A two-stage open-vocabulary detector of a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.models import tiny_cfg

from glipv2_d2.modeling.two_stage import OpenVocabularyRCNN

LEVELS = ["p3", "p4", "p5", "p6", "p7"]
CASCADE = ("MODEL.ROI_HEADS.NAME", "OpenVocabularyCascadeROIHeads")
# Class names are encoded separately: neither the other names nor their order matter.
PHRASES = ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")


def two_stage_cfg(*opts: Any) -> CfgNode:
    """A config of the tiny detector with masks, on the CPU; ``opts`` alternate keys and values."""
    return tiny_cfg(
        *("MODEL.META_ARCHITECTURE", "OpenVocabularyRCNN", "MODEL.MASK_ON", True),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.RPN.IN_FEATURES", LEVELS),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
        *("MODEL.ROI_HEADS.NAME", "OpenVocabularyROIHeads"),
        *("MODEL.ROI_HEADS.IN_FEATURES", LEVELS[:3], "MODEL.ROI_HEADS.NUM_CLASSES", 7),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 12, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 4),
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
        *("MODEL.GROUNDING.REGION_WORD_SCORE", "CosineScore"),
        *("MODEL.GROUNDING.LOG_SCALE", -2.0),
        *opts,
    )


def two_stage_model(*opts: Any) -> OpenVocabularyRCNN:
    """The tiny detector in evaluation mode; random weights from a fixed seed."""
    torch.manual_seed(0)
    return build_model(two_stage_cfg(*opts)).eval()
