from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from glipv2_d2.layers.drop_block import DropBlock
from glipv2_d2.modeling.backbone import GroundingFPN

CHANNELS = 6


class Pyramid(Backbone):
    """Average pooled copies of the image, strides 8, 16, 32."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {f"c{k}": F.avg_pool2d(image, 2**k, ceil_mode=True) for k in (3, 4, 5)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"c{k}": ShapeSpec(channels=3, stride=2**k) for k in (3, 4, 5)}


def make_fpn(prob: float = 0.0, channels: int = CHANNELS) -> GroundingFPN:
    torch.manual_seed(0)
    return GroundingFPN(
        bottom_up=Pyramid(),
        in_features=["c3", "c4", "c5"],
        out_channels=channels,
        drop_block=DropBlock(prob=prob, block_size=3),
    )


def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_five_levels_of_halving_size() -> None:
    sizes = {name: tuple(level.shape) for name, level in make_fpn()(image()).items()}
    assert sizes == {
        "p3": (2, CHANNELS, 8, 12),
        "p4": (2, CHANNELS, 4, 6),
        "p5": (2, CHANNELS, 2, 3),
        "p6": (2, CHANNELS, 1, 2),
        "p7": (2, CHANNELS, 1, 1),
    }


def test_output_shape_has_strides_and_channels() -> None:
    shapes = make_fpn().output_shape()
    assert {name: (s.stride, s.channels) for name, s in shapes.items()} == {
        f"p{k}": (2**k, CHANNELS) for k in range(3, 8)
    }


def test_size_divisibility_is_the_coarsest_stride() -> None:
    assert make_fpn().size_divisibility == 32


def test_equals_detectron2s_fpn_without_drop_block() -> None:
    fpn = make_fpn()
    ours, theirs = fpn(image()), super(GroundingFPN, fpn).forward(image())
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_p6_and_p7_are_computed_from_the_output_p5() -> None:
    fpn = make_fpn()
    levels = fpn(image())
    p6 = fpn.top_block.p6(levels["p5"])
    assert torch.equal(levels["p6"], p6)
    assert torch.equal(levels["p7"], fpn.top_block.p7(p6.relu()))
    assert (levels["p6"] < 0).any()


def test_bf16_gradients_of_maps_one_pixel_wide_are_those_of_fp32() -> None:
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        fpn = make_fpn(channels=16)
        torch.full((2**18,), torch.nan)  # what a read of freed memory would return
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            fpn(image()[..., :32])["p7"].float().square().sum().backward()
        gradients.append(fpn.top_block.p7.weight.grad)
    expected, ours = gradients
    assert (ours - expected).norm() <= 0.1 * expected.norm()


def test_size_that_is_not_a_multiple_of_the_stride() -> None:
    levels = make_fpn()(image()[..., :72, :72])
    assert [levels[f"p{k}"].shape[-1] for k in (3, 4, 5)] == [9, 5, 3]


def test_state_dict_names_are_those_of_checkpoints() -> None:
    modules = {name.rpartition(".")[0] for name in make_fpn().state_dict()}
    laterals_and_outputs = {f"fpn_{kind}{k}" for kind in ("lateral", "output") for k in (3, 4, 5)}
    assert modules == laterals_and_outputs | {"top_block.p6", "top_block.p7"}


def test_biases_are_initialised_to_zero() -> None:
    assert all((p == 0).all() for n, p in make_fpn().named_parameters() if n.endswith("bias"))


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_drop_block_applies_to_p3_and_p4_but_not_to_the_top_down_path() -> None:
    fpn = make_fpn()
    plain = fpn(image())
    fpn.drop_block = Doubling()
    changed = fpn(image())
    for name in ("p5", "p6", "p7"):
        assert torch.equal(changed[name], plain[name])
    # Biases are 0, so doubling the merged map doubles its level. If the top-down path also used the
    # doubled map, the part of P4 in P3 would be multiplied by more than 2.
    for name in ("p3", "p4"):
        torch.testing.assert_close(changed[name], 2 * plain[name])


def test_drop_block_applies_in_training_only() -> None:
    fpn = make_fpn(prob=0.3)
    plain = fpn.eval()(image())
    dropped = fpn.train()(image())
    assert not torch.equal(dropped["p3"], plain["p3"])
    assert torch.equal(dropped["p5"], plain["p5"])


def test_copy_in_eval_mode_is_independent_of_the_original_in_training_mode() -> None:
    fpn = make_fpn(prob=0.3).train()
    clone = copy.deepcopy(fpn).eval()
    assert torch.equal(clone(image())["p3"], clone(image())["p3"])


def test_unknown_feature_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"in_features is \['p1', 'c4'\].*\['c3', 'c4', 'c5'\]"):
        GroundingFPN(
            bottom_up=Pyramid(),
            in_features=["p1", "c4"],
            out_channels=CHANNELS,
            drop_block=DropBlock(prob=0.0, block_size=3),
        )
