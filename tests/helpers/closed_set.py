"""Detectron2's detectors with a closed list of classes, and the same with any class names."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.models import tiny_bert_directory
from helpers.two_stage import LEVELS, PHRASES, two_stage_cfg
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

NAMES = ["cat", "traffic light", "zebra", "umbrella", "dog", "tennis racket"]
CLASS_SPECIFIC = (
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
    *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
)
RETINANET = (
    *("MODEL.RETINANET.IN_FEATURES", LEVELS, "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 10], [16, 20], [32, 40], [64, 80], [128, 160]]),
)
# The keys of both detectors, those of Detectron2's and those of ours.
KINDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "class-specific": (
        CLASS_SPECIFIC,
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "ClosedSetROIHeads"),
    ),
    "class-agnostic, sigmoid": (
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "ClosedSetROIHeads"),
    ),
    "cascade": (
        ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "ClosedSetCascadeROIHeads"),
    ),
    "RetinaNet": (
        RETINANET,
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.META_ARCHITECTURE", "OpenVocabularyRetinaNet"),
    ),
}
ONE_OF_EACH = ["class-specific", "RetinaNet"]
TWO_STAGE = [kind for kind in KINDS if kind != "RetinaNet"]


@functools.cache
def tiny_encoder() -> str:
    """A directory with a random text encoder, in which different names are no synonyms."""
    directory = tempfile.mkdtemp(prefix="tiny_encoder_")
    AutoTokenizer.from_pretrained(tiny_bert_directory()).save_pretrained(directory)
    torch.manual_seed(0)
    bert = BertModel(BertConfig.from_pretrained(tiny_bert_directory()), add_pooling_layer=False)
    nn.init.normal_(bert.embeddings.word_embeddings.weight)
    bert.save_pretrained(directory)
    return directory


def closed_set_cfg(kind: str, *opts: Any) -> CfgNode:
    """The config of a detector of ``NAMES``; ``opts`` alternate keys and values."""
    common, _, ours = KINDS[kind]
    return two_stage_cfg(
        *("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_encoder()),
        *("MODEL.LANGUAGE_BACKBONE.WEIGHTS", tiny_encoder()),
        *("MODEL.LANGUAGE_BACKBONE.FREEZE", True, *PHRASES),
        *("MODEL.CLOSED_SET.CLASS_NAMES", NAMES, "MODEL.CLOSED_SET.MAX_SIMILARITY", 0.999),
        *("MODEL.ROI_HEADS.NUM_CLASSES", len(NAMES), "MODEL.RETINANET.NUM_CLASSES", len(NAMES)),
        # With -1, Detectron2's RetinaNet drops the last detection.
        *("TEST.DETECTIONS_PER_IMAGE", 100),
        *common,
        *ours,
        *opts,
    )


@functools.cache
def plain_detector(kind: str, *opts: Any) -> nn.Module:
    """Detectron2's detector in evaluation mode, with random weights whose detections differ."""
    cfg = closed_set_cfg(kind, *KINDS[kind][1], *opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if ".cls_score." in name or ".bbox_pred." in name or ".predictor." in name:
            nn.init.normal_(parameter, std=0.5 if ".bbox_pred." in name else 1.0)
    return model


def text_prompted(kind: str, *opts: Any, plain: nn.Module | None = None) -> nn.Module:
    """Ours in evaluation mode, with the weights of Detectron2's."""
    torch.manual_seed(0)
    model = build_model(closed_set_cfg(kind, *opts)).eval()
    if plain is not None:
        assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    return model
