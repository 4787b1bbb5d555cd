from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer

from glipv2_d2 import add_glipv2_config
from glipv2_d2.modeling.backbone import GroundingFPN


def tiny_config(frozen_stages: int = -1) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 2, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 1, 2, 2]
    cfg.MODEL.SWIN.WINDOW_SIZE = 4
    cfg.MODEL.SWIN.FROZEN_STAGES = frozen_stages
    return cfg


def tiny_swin_fpn(frozen_stages: int = -1) -> GroundingFPN:
    torch.manual_seed(0)
    return build_backbone(tiny_config(frozen_stages))


def test_the_config_builds_detectron2s_swin_under_our_fpn() -> None:
    backbone = tiny_swin_fpn()
    assert isinstance(backbone, GroundingFPN)
    assert isinstance(backbone.bottom_up, SwinTransformer)


def test_levels_have_the_strides_they_promise() -> None:
    backbone = tiny_swin_fpn().eval()
    levels = backbone(torch.randn(1, 3, 96, 128))
    for name, shape in backbone.output_shape().items():
        height, width = -(-96 // shape.stride), -(-128 // shape.stride)
        assert tuple(levels[name].shape) == (1, 8, height, width)


def test_the_first_stage_has_no_norm_since_its_output_is_not_used() -> None:
    names = tiny_swin_fpn().bottom_up.state_dict()
    assert {"norm1.weight", "norm2.weight", "norm3.weight"} <= names.keys()
    assert "norm0.weight" not in names


def test_nothing_is_frozen_by_default() -> None:
    assert all(p.requires_grad for p in tiny_swin_fpn().parameters())


def test_frozen_stages_get_no_gradient() -> None:
    swin = tiny_swin_fpn(frozen_stages=2).bottom_up
    frozen = {name.split(".")[0] for name, p in swin.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed", "layers"}
    assert all(p.requires_grad for p in swin.layers[1].parameters())


def test_frozen_stages_stay_in_eval_mode_in_training() -> None:
    swin = tiny_swin_fpn(frozen_stages=2).train().bottom_up
    assert not swin.patch_embed.training
    assert not any(module.training for module in swin.layers[0].modules())
    assert all(module.training for module in swin.layers[1].modules())
