"""Fusion over levels with evidence: the causal tests of the core, and what is added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers.shared_tests import shared_tests
from mini_models import mini_cfg
from modeling.fusion import test_causal
from modeling.fusion.test_causal import (
    SIZES,
    TEXT_DIM,
    Pyramid,
    images,
    random_features,
)

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling import EvidenceFusedHead

globals().update(shared_tests(test_causal, "head"))
text = test_causal.text

VISUAL_DIM, CHANNELS = 128, 128 + 1096
SHAPES = {
    "p3": ShapeSpec(channels=CHANNELS, stride=8),
    "p4": ShapeSpec(channels=CHANNELS, stride=16),
}


@pytest.fixture
def head() -> EvidenceFusedHead:
    torch.manual_seed(0)
    built = EvidenceFusedHead(**(SIZES | {"visual_dim": VISUAL_DIM})).eval()
    # Offsets are initialised to zero and the scales of the updates to small values.
    for name, parameter in built.named_parameters():
        if "offset" in name:
            torch.nn.init.normal_(parameter, std=0.01)  # The maps have few pixels.
        if "gamma" in name:
            torch.nn.init.normal_(parameter)
    return built


@pytest.fixture
def features() -> Pyramid:
    return random_features(CHANNELS)


def plain_text(text: TextFeatures) -> TextFeatures:
    return replace(text, causal=False)


def test_evidence_does_not_change_and_features_do(
    head: EvidenceFusedHead, features: Pyramid, text: TextFeatures
) -> None:
    fused, _ = head(features, plain_text(text))
    for name, level in features.items():
        assert torch.equal(fused[name][:, VISUAL_DIM:], level[:, VISUAL_DIM:])
        assert not torch.allclose(fused[name][:, :VISUAL_DIM], level[:, :VISUAL_DIM])


@pytest.mark.parametrize(
    ("part", "matters"),
    [(slice(128, 208), True), (slice(208, 212), False), (slice(212, None), False)],
    ids=["class probabilities", "distances", "colours and cut-outs"],
)
def test_of_the_evidence_only_class_probabilities_are_fused(
    head: EvidenceFusedHead, features: Pyramid, text: TextFeatures, part: slice, matters: bool
) -> None:
    before = head(features, plain_text(text))
    for level in features.values():
        level[:, part] += torch.randn_like(level[:, part])
    after = head(features, plain_text(text))
    assert torch.equal(before[1].hidden, after[1].hidden) != matters
    for name in features:
        same = torch.equal(before[0][name][:, :VISUAL_DIM], after[0][name][:, :VISUAL_DIM])
        assert same != matters


def test_text_depends_on_the_positions_of_features(
    head: EvidenceFusedHead, features: Pyramid, text: TextFeatures
) -> None:
    """Attention alone does not: a mirrored map has the same set of features."""
    before = head.fuse_text(images(features, [0, 1]), text).hidden
    mirrored = {name: level.flip(-1) for name, level in features.items()}
    after = head.fuse_text(images(mirrored, [0, 1]), text).hidden
    assert not torch.allclose(before, after)
    head.blocks = head.blocks[:1]  # One block attends before any convolution.
    with torch.no_grad():
        head.input_projection.weight.zero_()
    before = head.fuse_text(images(features, [0, 1]), text).hidden
    after = head.fuse_text(images(mirrored, [0, 1]), text).hidden
    torch.testing.assert_close(before, after)


def test_the_head_is_built_by_its_name() -> None:
    head = build_fused_head(mini_cfg(), SHAPES, TEXT_DIM)
    assert isinstance(head, EvidenceFusedHead)
    assert head.input_projection.out_channels == VISUAL_DIM


def test_levels_without_evidence_raise() -> None:
    shapes = SHAPES | {"p4": ShapeSpec(channels=128 + 84, stride=16)}
    with pytest.raises(
        ValueError, match=r"level p4 has 212 channels, not 1224.*needs .*build_evidence_backbone"
    ):
        build_fused_head(mini_cfg(), shapes, TEXT_DIM)
