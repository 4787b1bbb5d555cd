"""Backbones, datasets, drawing and loops of Detectron2 around a GLIPv2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset
from detectron2.modeling import BACKBONE_REGISTRY, ViT, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.utils.visualizer import Visualizer
from helpers.models import random_image
from helpers.pipelines import TRAIN, VAL

from glipv2_d2.data.mapper import GroundingMapper


@pytest.fixture
def vit() -> Iterator[str]:
    """The name of a ViTDet backbone, which pads images to squares, in Detectron2's registry."""
    name = "pipelines_vit"

    def build(cfg: CfgNode, input_shape: Any) -> SimpleFeaturePyramid:
        del cfg, input_shape
        net = ViT(
            img_size=64,
            patch_size=16,
            embed_dim=16,
            depth=1,
            num_heads=2,
            window_size=2,
            out_feature="last_feat",
        )
        return SimpleFeaturePyramid(
            net=net,
            in_feature="last_feat",
            out_channels=16,
            scale_factors=(4.0, 2.0, 1.0, 0.5),
            top_block=LastLevelMaxPool(),
            norm="LN",
            square_pad=64,
        )

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)
    yield name
    del BACKBONE_REGISTRY._obj_map[name]


def training_inputs(cfg: CfgNode) -> list[dict[str, Any]]:
    mapper = DatasetMapper(cfg, is_train=True)
    return [mapper(record) for record in DatasetCatalog.get(TRAIN)[:2]]


def assert_trains_and_detects(cfg: CfgNode) -> None:
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.0
    model = build_model(cfg).train()
    sum(model(training_inputs(cfg)).values()).backward()
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        (result,) = model.eval()([{"image": random_image(40, 56), "classes": ["cat"]}])
    assert result["instances"].image_size == (40, 56)
    assert len(result["instances"]) > 0


def test_a_vit_of_detectron2_is_a_backbone(cfg: CfgNode, vit: str) -> None:
    cfg.MODEL.BACKBONE.NAME = vit
    assert_trains_and_detects(cfg)


def test_a_resnet_of_detectron2_is_a_backbone(cfg: CfgNode) -> None:
    levels = ["res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels])
    assert_trains_and_detects(cfg)


def test_batches_of_detectron2s_datasets_are_training_batches(cfg: CfgNode) -> None:
    records = DatasetFromList(get_detection_dataset_dicts([TRAIN]))
    samples = MapDataset(records, GroundingMapper(cfg, is_train=True))
    batch = next(iter(AspectRatioGroupedDataset(samples, 2)))
    assert len(batch) == 2
    losses = build_model(cfg).train()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_evaluation_ignores_ground_truth_and_its_results_are_drawn(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = (VAL,)
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.0
    model = build_model(cfg).eval()
    (x,) = next(iter(build_detection_test_loader(cfg, VAL)))
    with torch.no_grad():
        (plain,) = model([x])
        (result,) = model([x | {"instances": training_inputs(cfg)[0]["instances"]}])
    assert torch.equal(result["instances"].scores, plain["instances"].scores)
    picture = x["image"].numpy().transpose(1, 2, 0)[:, :, ::-1]
    drawn = Visualizer(picture, MetadataCatalog.get(VAL)).draw_instance_predictions(
        result["instances"][:5].to("cpu")
    )
    assert drawn.get_image().shape == picture.shape
