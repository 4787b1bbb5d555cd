from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from helpers.models import glip_cfg

from glipv2_d2.modeling.backbone import GroundingFPN


def tiny_config(frozen_stages: int = -1) -> CfgNode:
    cfg = glip_cfg()
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


def test_config_builds_detectron2s_swin_with_the_fpn() -> None:
    backbone = tiny_swin_fpn()
    assert isinstance(backbone, GroundingFPN)
    assert isinstance(backbone.bottom_up, SwinTransformer)


def test_parameter_names_are_detectron2s() -> None:
    ours = tiny_swin_fpn().bottom_up
    theirs = SwinTransformer(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=(1, 2, 3),
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_levels_have_the_strides_of_the_output_shape() -> None:
    backbone = tiny_swin_fpn().eval()
    levels = backbone(torch.randn(1, 3, 96, 128))
    for name, shape in backbone.output_shape().items():
        height, width = -(-96 // shape.stride), -(-128 // shape.stride)
        assert tuple(levels[name].shape) == (1, 8, height, width)


def test_first_stage_has_no_norm() -> None:
    names = tiny_swin_fpn().bottom_up.state_dict()
    assert {"norm1.weight", "norm2.weight", "norm3.weight"} <= names.keys()
    assert "norm0.weight" not in names


def test_gradients_reach_the_position_bias() -> None:
    swin = tiny_swin_fpn().bottom_up
    swin(torch.randn(1, 3, 64, 64))["p3"].sum().backward()
    for name, parameter in swin.layers[0].named_parameters():
        assert parameter.grad is not None, name


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    cfg = tiny_config()
    image, gradients, recomputed = torch.randn(1, 3, 64, 64), [], 0
    for checkpointing in (False, True):
        cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = checkpointing
        torch.manual_seed(0)
        swin = build_backbone(cfg).train().bottom_up
        calls = []
        block = swin.layers[2].blocks[0]
        block.attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)  # drop path
        sum(features.square().sum() for features in swin(image).values()).backward()
        gradients.append([parameter.grad for parameter in swin.parameters()])
        recomputed += len(calls) - 1
    assert recomputed == 1
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_no_stage_is_frozen_by_default() -> None:
    assert all(p.requires_grad for p in tiny_swin_fpn().parameters())


def test_frozen_stages_do_not_require_gradients() -> None:
    swin = tiny_swin_fpn(frozen_stages=2).bottom_up
    frozen = {name.split(".")[0] for name, p in swin.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed", "layers"}
    assert not any(p.requires_grad for p in swin.layers[0].parameters())
    assert all(p.requires_grad for p in swin.layers[1].parameters())


def test_frozen_stages_stay_in_eval_mode_in_training() -> None:
    swin = tiny_swin_fpn(frozen_stages=2).train().bottom_up
    assert not swin.patch_embed.training
    assert not any(module.training for module in swin.layers[0].modules())
    assert all(module.training for module in swin.layers[1].modules())
