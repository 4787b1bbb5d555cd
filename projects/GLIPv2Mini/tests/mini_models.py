"""A tiny model with the parts of the small model, in the configurations that tests need."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.models import tiny_cfg

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.class_evidence import ClassEvidence
from glipv2_d2.projects import add_project_configs
from glipv2_mini.modeling import evidence_rpn
from glipv2_mini.modeling.evidence_backbone import NUM_IMAGENET_CLASSES
from glipv2_mini.modeling.evidence_score import EvidenceScore, LearnedEvidenceScore
from glipv2_mini.modeling.nanodet import NUM_CLASSES, PIXEL_MEAN, PIXEL_STD

EVIDENCE = (
    *("INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", PIXEL_MEAN, "MODEL.PIXEL_STD", PIXEL_STD),
    *("MODEL.BACKBONE.NAME", "build_evidence_backbone", "MODEL.EVIDENCE.NUM_CUTOUTS", 2),
    *("MODEL.EVIDENCE.NUM_CUTOUTS_TRAIN", 2, "MODEL.TIMM.NAME", "test_resnet"),
    *("MODEL.TIMM.WEIGHTS", "", "MODEL.FUSED_HEAD.NAME", "EvidenceFusedHead"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "EvidenceRPN", "MODEL.GROUNDING.ANCHOR_SCALE", 4.0),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", 1),
)
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
    """:func:`~helpers.models.tiny_cfg` with the keys and the image parts of the small model."""
    cfg = tiny_cfg()
    add_project_configs(cfg)
    cfg.merge_from_list([*EVIDENCE, *opts])
    return cfg


def mini_model(*opts: Any) -> GLIPv2:
    """The tiny model in evaluation mode; random weights from a fixed seed."""
    torch.manual_seed(0)
    with patch.object(evidence_rpn, "build_evidence_score", random_evidence_score):
        return build_model(mini_cfg(*opts)).eval()


def random_evidence_score(cfg: CfgNode, language_dim: int) -> EvidenceScore:
    """In place of :func:`build_evidence_score`, which needs a pretrained text encoder."""
    evidence = {
        "detector_evidence": random_class_evidence(NUM_CLASSES, language_dim),
        "classifier_evidence": random_class_evidence(NUM_IMAGENET_CLASSES, language_dim),
    }
    if not cfg.MODEL.EVIDENCE.LEARNS_BOXES:
        return EvidenceScore(**evidence, learns_scale=False)
    return LearnedEvidenceScore(**evidence, language_dim=language_dim)


def random_class_evidence(num_classes: int, language_dim: int) -> ClassEvidence:
    """Evidence of classes with one random embedding each."""
    return ClassEvidence(
        class_embeddings=torch.randn(num_classes, language_dim),
        class_of_embedding=range(num_classes),
        num_classes=num_classes,
    )
