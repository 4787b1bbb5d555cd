from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from transformers import BertConfig, ConvNextConfig, PretrainedConfig, SwinConfig

from glipv2_d2 import add_glipv2_config
from glipv2_d2.modeling.backbone.auto_backbone import TransformersBackbone, build_auto_backbone

FEATURES = ["stage2", "stage3", "stage4"]
SWIN = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])


def saved(config: PretrainedConfig, directory: Path) -> str:
    config.save_pretrained(directory)
    return str(directory)


def tiny_config(name: str) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_auto_fpn_backbone"
    cfg.MODEL.AUTO_BACKBONE.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = FEATURES
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


def test_activation_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    cfg = tiny_config(saved(SWIN, tmp_path))
    image, gradients = torch.randn(1, 3, 64, 64), []
    for checkpointing in (False, True):
        cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = checkpointing
        torch.manual_seed(0)
        backbone = build_backbone(cfg).train().bottom_up
        calls: list[int] = []
        layer = next(m for m in backbone.modules() if type(m).__name__ == "SwinLayer")
        first_part = next(layer.children())
        first_part.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)  # drop path
        sum(features.square().sum() for features in backbone(image).values()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert len(calls) > 1
    torch.testing.assert_close(gradients[1], gradients[0])


def test_model_without_activation_checkpointing_is_refused(tmp_path: Path) -> None:
    cfg = tiny_config(saved(CONVNEXT, tmp_path))
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = True
    with pytest.raises(ValueError, match=r"ConvNextBackbone.*ACTIVATION_CHECKPOINTING"):
        build_backbone(cfg)


@pytest.mark.parametrize("config", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_config_builds_the_backbone_with_the_fpn(config: PretrainedConfig, tmp_path: Path) -> None:
    backbone = build_backbone(tiny_config(saved(config, tmp_path))).eval()
    levels = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(levels[f"p{k}"].shape) for k in (3, 4, 5)] == [
        (1, 8, 8, 12),
        (1, 8, 4, 6),
        (1, 8, 2, 3),
    ]


def test_strides_and_channels_are_those_of_the_features(tmp_path: Path) -> None:
    model = build_auto_backbone(
        name=saved(CONVNEXT, tmp_path), pretrained=False, out_features=["stage1", "stage4"]
    )
    shapes = TransformersBackbone(model=model).output_shape()
    assert {name: (s.stride, s.channels) for name, s in shapes.items()} == {
        "stage1": (4, 8),
        "stage4": (32, 16),
    }


def test_measuring_strides_restores_training_mode_and_weights(tmp_path: Path) -> None:
    model = build_auto_backbone(
        name=saved(CONVNEXT, tmp_path), pretrained=False, out_features=FEATURES
    ).train()
    backbone = TransformersBackbone(model=model)
    assert all(module.training for module in backbone.model.modules())
    assert all(p.grad is None for p in backbone.parameters())


def test_pretrained_weights_are_loaded_from_the_directory(tmp_path: Path) -> None:
    name = saved(CONVNEXT, tmp_path)
    stored = build_auto_backbone(name=name, pretrained=False, out_features=FEATURES)
    stored.save_pretrained(tmp_path)
    loaded = build_auto_backbone(name=name, pretrained=True, out_features=FEATURES)
    for key, value in stored.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_missing_weights_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set pretrained to False"):
        build_auto_backbone(name=saved(CONVNEXT, tmp_path), pretrained=True, out_features=FEATURES)


def test_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        build_auto_backbone(name=str(tmp_path), pretrained=False, out_features=FEATURES)


def test_model_that_is_not_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the model type bert"):
        build_auto_backbone(
            name=saved(BertConfig(), tmp_path), pretrained=False, out_features=FEATURES
        )


def test_unknown_feature_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['res9'\].*'stage4'"):
        build_auto_backbone(
            name=saved(CONVNEXT, tmp_path), pretrained=False, out_features=["stage3", "res9"]
        )
