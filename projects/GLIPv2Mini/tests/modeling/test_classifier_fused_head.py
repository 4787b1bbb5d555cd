from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from mini_models import mini_cfg

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.structures import ImageFeatures, TextFeatures

TEXT_DIM = 12
VISUAL_DIM = 16
HEADS = ("ClassifierFusedHead", "ClassifierFusedDynamicHead", "PositionalClassifierFusedHead")


def build(
    channels: int = VISUAL_DIM + TEXT_DIM, name: str = "ClassifierFusedHead"
) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = mini_cfg()
    cfg.MODEL.FUSED_HEAD.NAME = name
    cfg.MODEL.FUSED_HEAD.NUM_BLOCKS = 1
    shapes = {
        "p3": ShapeSpec(channels=channels, stride=8),
        "p4": ShapeSpec(channels=channels, stride=16),
    }
    return build_fused_head(cfg, shapes, TEXT_DIM).eval()


def inputs() -> tuple[dict[str, torch.Tensor], TextFeatures]:
    channels = VISUAL_DIM + TEXT_DIM
    features = {"p3": torch.randn(1, channels, 8, 8), "p4": torch.randn(1, channels, 4, 4)}
    return features, TextFeatures(torch.randn(1, 3, TEXT_DIM), torch.ones(1, 3).bool())


@pytest.mark.parametrize("name", HEADS)
def test_the_last_channels_do_not_change(name: str) -> None:
    features, text = inputs()
    fused, _ = build(name=name)(features, text)
    for name, level in features.items():
        torch.testing.assert_close(fused[name][:, VISUAL_DIM:], level[:, VISUAL_DIM:])


def test_the_last_channels_do_not_affect_the_visual_ones() -> None:
    head = build()
    features, text = inputs()
    fused, _ = head(features, text)
    features["p3"][:, VISUAL_DIM:] += 1
    again, _ = head(features, text)
    torch.testing.assert_close(again["p3"][:, :VISUAL_DIM], fused["p3"][:, :VISUAL_DIM])


def test_a_pyramid_without_classifier_channels_raises() -> None:
    with pytest.raises(ValueError, match="build_timm_classifier_fpn_backbone"):
        build(channels=TEXT_DIM)


def test_only_the_bidirectional_head_changes_the_text() -> None:
    features, text = inputs()
    _, unchanged = build()(features, text)
    assert unchanged is text
    head = build(name="ClassifierFusedDynamicHead")
    _, fused = head(features, text)
    features["p3"][:, :VISUAL_DIM] += torch.randn(VISUAL_DIM, 8, 8)
    _, other = head(features, text)
    assert not torch.allclose(fused.hidden, other.hidden)


def test_the_positional_head_starts_as_the_head_whose_weights_it_loads() -> None:
    first, positional = build().double(), build(name="PositionalClassifierFusedHead").double()
    weights = first.state_dict()
    missing = positional.load_state_dict(weights, strict=False).missing_keys
    assert len(missing) + len(weights) == len(positional.state_dict())
    assert all(name.startswith(positional.checkpoint_optional) for name in missing)
    features, text = inputs()
    features = {name: level.double() for name, level in features.items()}
    text = replace(text, hidden=text.hidden.double())
    maps, _ = first(features, text)
    same_maps, _ = positional(features, text)
    for name, level in maps.items():
        torch.testing.assert_close(same_maps[name], level)


@pytest.mark.parametrize("part", ["classifier", "position"])
def test_text_of_the_positional_head_depends_on_the_classifier_and_on_positions(part: str) -> None:
    head = build(name="PositionalClassifierFusedHead")
    torch.nn.init.normal_(head.input_projection.weight)
    features, text = inputs()
    images = ImageFeatures(features, [], list(range(len(text.mask))))
    before = head.fuse_text(images, text).hidden
    for name, level in features.items():
        if part == "position":
            features[name] = level.flip(-1)
        else:
            level[:, VISUAL_DIM:] += 1
    after = head.fuse_text(images, text).hidden
    assert not torch.allclose(after, before)
