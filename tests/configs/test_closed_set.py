"""The configs of Detectron2's detectors for any class names fit the files of its model zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from helpers.no_memory import parameters_without_memory
from torch import nn

from glipv2_d2.engine.setup import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "closed_set"
ZOO = {
    "mask_rcnn_R50_FPN_coco.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "retinanet_R50_FPN_coco.yaml": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
}
NAMES_GIVEN_AS_TEXT = {"MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME", "MODEL.WEIGHTS"}
# The type of clipping while it is disabled, and the device.
WITHOUT_EFFECT = {"SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "MODEL.DEVICE"}


def flat(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ZOO)
def test_it_differs_from_detectron2s_in_the_class_names_only(name: str) -> None:
    theirs, ours = (
        dict(flat(model_zoo.get_config(ZOO[name]))),
        dict(flat(load_config(CONFIGS / name))),
    )
    differing = {key for key, value in theirs.items() if ours[key] != value}
    assert differing - WITHOUT_EFFECT - NAMES_GIVEN_AS_TEXT == set()
    assert ours["MODEL.WEIGHTS"] == model_zoo.get_checkpoint_url(ZOO[name]).replace(
        "https://dl.fbaipublicfiles.com/detectron2/", "detectron2://"
    )


@pytest.mark.parametrize("name", ZOO)
def test_the_weights_have_the_names_and_shapes_of_detectron2s(name: str) -> None:
    cfg = model_zoo.get_config(ZOO[name])
    cfg.MODEL.DEVICE = "meta"
    with parameters_without_memory():
        expected = shapes(build_model(cfg))
    model = build_model(load_config(CONFIGS / name, ("MODEL.DEVICE", "cpu")))
    ours = shapes(model)
    assert {key: ours.get(key) for key in expected} == expected
    added = {key for key in ours if key not in expected}
    assert all(key.startswith("language_backbone.") or "region_word." in key for key in added)
    assert model.class_evidence.num_classes == 80


def test_each_name_of_coco_is_similar_to_its_own_class_only() -> None:
    """So that it has the detections of Detectron2's detector."""
    model = build_model(
        load_config(CONFIGS / "retinanet_R50_FPN_coco.yaml", ("MODEL.DEVICE", "cpu"))
    )
    evidence = model.class_evidence
    similarity = evidence.similarity(evidence.class_embeddings)
    exclusive = evidence.exclusive_similarity(evidence.class_embeddings)
    assert torch.equal(exclusive, torch.eye(80))
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    assert similarity[names.index("cat"), names.index("dog")] > 0
