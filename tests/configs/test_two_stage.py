"""The two-stage configs equal Detectron2's, with text features in place of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.no_memory import parameters_without_memory

from glipv2_d2.data.drawn import drawn_cutouts
from glipv2_d2.engine.setup import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "two_stage"
CLASS_AGNOSTIC = {
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
}
TEXT_CLASSIFIER = {"MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME", *CLASS_AGNOSTIC}
# The type of clipping while it is disabled, and the device.
WITHOUT_EFFECT = {"SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "MODEL.DEVICE"}
ZOO = {
    "mask_rcnn_R50_FPN_text.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade_mask_rcnn_R50_FPN_text.yaml": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
}


def load(name: str) -> CfgNode:
    opts = ("MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "meta")
    return load_config(CONFIGS / name, opts)


def flat(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shapes(cfg: CfgNode) -> dict[str, torch.Size]:
    with parameters_without_memory():
        return {name: p.shape for name, p in build_model(cfg).named_parameters()}


@pytest.mark.parametrize("name", ZOO)
def test_it_differs_from_detectron2s_in_the_text_classifier_only(name: str) -> None:
    theirs, ours = dict(flat(model_zoo.get_config(ZOO[name]))), dict(flat(load(name)))
    differing = {key for key, value in theirs.items() if ours[key] != value}
    already = {key for key, value in CLASS_AGNOSTIC.items() if theirs[key] == value}
    assert differing - WITHOUT_EFFECT == TEXT_CLASSIFIER - already


@pytest.mark.parametrize("name", ZOO)
def test_the_full_size_network_scores_text_features_in_place_of_a_classifier(name: str) -> None:
    theirs = model_zoo.get_config(ZOO[name])
    theirs.merge_from_list([item for pair in CLASS_AGNOSTIC.items() for item in pair])
    theirs.MODEL.DEVICE = "meta"
    expected = {k: shape for k, shape in shapes(theirs).items() if ".cls_score." not in k}
    ours = shapes(load(name))
    added = {key: shape for key, shape in ours.items() if key not in expected}
    assert {key: shape for key, shape in ours.items() if key in expected} == expected
    assert {key.partition(".")[0] for key in added} == {"language_backbone", "roi_heads"}
    of_heads = [key for key in added if key.startswith("roi_heads.")]
    assert all(".region_word." in key or ".background." in key for key in of_heads)
    num_stages = 3 if name.startswith("cascade") else 1
    assert len([key for key in of_heads if key.endswith(".background.weight")]) == num_stages
    num_language = sum(s.numel() for k, s in added.items() if k.startswith("language_backbone."))
    assert num_language == 108_891_648  # BERT-base without its pooler


def test_the_small_model_has_a_class_for_every_drawn_name() -> None:
    names = {cutout.name for cutout in drawn_cutouts()}
    assert len(names) == load("drawn_small.yaml").MODEL.ROI_HEADS.NUM_CLASSES
