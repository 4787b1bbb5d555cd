from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformer, WindowAttention

from glipv2_d2 import add_glipv2_config
from glipv2_d2.modeling.backbone import GroundingFPN, swin
from glipv2_d2.modeling.backbone.swin import InferenceWindowAttention


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


@pytest.mark.parametrize("num_masks", [0, 3])
@pytest.mark.parametrize("way", ["_attend_by_products", "_attend_fused"])
def test_both_ways_of_window_attention_are_detectron2s(
    way: str, num_masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU takes the first.
    chosen = getattr(InferenceWindowAttention, way)
    monkeypatch.setattr(InferenceWindowAttention, "_attend_by_products", chosen)
    torch.manual_seed(0)
    plain = WindowAttention(8, (4, 4), num_heads=2)
    torch.nn.init.normal_(plain.relative_position_bias_table)
    # Two images of three windows each.
    windows = torch.randn(6, 16, 8)
    mask = torch.randn(num_masks, 16, 16) if num_masks else None
    with torch.no_grad():
        fused = InferenceWindowAttention.like(plain)(windows, mask)
    torch.testing.assert_close(fused, plain(windows, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("numbers", [1, 500, 10**9], ids=["a row each", "uneven", "one"])
def test_bands_without_gradients_equal_the_whole(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottom_up = tiny_swin_fpn().bottom_up.eval()
    images = torch.randn(2, 3, 64, 96)
    whole = bottom_up(images)  # with gradients nothing is taken apart
    monkeypatch.setitem(swin._MAX_BAND_NUMBERS, "cpu", numbers)
    with torch.no_grad():
        banded = bottom_up(images)
    for name, level in whole.items():
        torch.testing.assert_close(banded[name], level, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_position_bias() -> None:
    swin = tiny_swin_fpn().bottom_up
    swin(torch.randn(1, 3, 64, 64))["p3"].sum().backward()
    for name, parameter in swin.layers[0].named_parameters():
        assert parameter.grad is not None, name


def test_activation_checkpointing_changes_no_gradient() -> None:
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


def test_a_block_keeps_the_size_that_each_thread_told_it() -> None:
    block = tiny_swin_fpn().bottom_up.layers[0].blocks[0]

    def tell(height: int) -> int:
        block.H = height
        return block.H

    block.H = 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(tell, 2).result() == 2
    assert block.H == 1


def test_a_thread_that_told_a_block_no_size_reads_the_last_one() -> None:
    block = tiny_swin_fpn().bottom_up.layers[0].blocks[0]
    block.H = 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: block.H).result() == 3


@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
def test_a_stage_computes_what_detectron2s_does_and_its_mask_once(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny_swin_fpn().bottom_up.layers[1].double().eval()
    x = torch.randn(1, size[0] * size[1], 16, dtype=torch.float64)
    expected = BasicLayer.forward(stage, x, *size)
    computed = []

    def shift_mask(*args: Any) -> torch.Tensor:
        computed.append(args)
        return compute(*args)

    compute = swin.shift_mask
    monkeypatch.setattr(swin, "shift_mask", shift_mask)
    for _ in range(2):
        torch.testing.assert_close(stage(x, *size), expected)
    assert len(computed) == 1


@pytest.mark.parametrize("size", [(8, 8), (13, 22), (4, 3), (1, 1), (9, 2)])
@pytest.mark.parametrize("num_images", [1, 3])
def test_without_gradients_a_stage_computes_what_detectron2s_does(
    size: tuple[int, int], num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny_swin_fpn().bottom_up.layers[2].double().eval()  # one block of each kind
    x = torch.randn(num_images, size[0] * size[1], 32, dtype=torch.float64)
    expected = BasicLayer.forward(stage, x, *size)
    monkeypatch.setitem(swin._MAX_BAND_NUMBERS, "cpu", 2000)
    before = x.clone()
    by_channel = x.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(stage(x, *size), expected)
        torch.testing.assert_close(stage(by_channel, *size), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_half_precision_a_stage_is_as_near_to_detectron2s(dtype: torch.dtype) -> None:
    """Also where what comes in is precise and only products are rounded, as on CUDA."""
    stage = tiny_swin_fpn().bottom_up.layers[2].eval()
    x = torch.randn(2, 13 * 22, 32)
    exact = BasicLayer.forward(stage, x, 13, 22)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = BasicLayer.forward(stage, x.to(dtype), 13, 22)[0]
        with torch.no_grad():
            ours = stage(x.to(dtype), 13, 22)[0]
    assert ours.dtype == theirs.dtype
    error, their_error = ((y - exact).norm().item() for y in (ours, theirs))
    assert 0 < error < 1.25 * their_error


def test_a_stage_keeps_few_masks() -> None:
    stage = tiny_swin_fpn().bottom_up.layers[0]
    for height in range(4, 60, 4):
        stage.mask(height, 8, torch.device("cpu"))
    assert len(stage.masks) < 5
