from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers.models import tiny_cfg

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.structures import TextFeatures

WORD_WIDTH = 12
VISUAL_DIM = 16
HEADS = ("ClassifierFusedHead", "ClassifierFusedDynamicHead", "ClassifierReadingDynamicHead")


def build(
    channels: int = VISUAL_DIM + WORD_WIDTH, name: str = "ClassifierFusedHead"
) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = tiny_cfg()
    cfg.MODEL.FUSED_HEAD.NAME = name
    cfg.MODEL.FUSED_HEAD.NUM_BLOCKS = 1
    shapes = {
        "p3": ShapeSpec(channels=channels, stride=8),
        "p4": ShapeSpec(channels=channels, stride=16),
    }
    return build_fused_head(cfg, shapes, WORD_WIDTH).eval()


def inputs() -> tuple[dict[str, torch.Tensor], TextFeatures]:
    channels = VISUAL_DIM + WORD_WIDTH
    features = {"p3": torch.randn(1, channels, 8, 8), "p4": torch.randn(1, channels, 4, 4)}
    return features, TextFeatures(torch.randn(1, 3, WORD_WIDTH), torch.ones(1, 3).bool())


@pytest.mark.parametrize("name", HEADS)
def test_the_last_channels_pass_by(name: str) -> None:
    features, language = inputs()
    fused, _ = build(name=name)(features, language)
    for name, level in features.items():
        torch.testing.assert_close(fused[name][:, VISUAL_DIM:], level[:, VISUAL_DIM:])


def test_the_last_channels_do_not_change_the_visual_ones() -> None:
    head = build()
    features, language = inputs()
    fused, _ = head(features, language)
    features["p3"][:, VISUAL_DIM:] += 1
    again, _ = head(features, language)
    torch.testing.assert_close(again["p3"][:, :VISUAL_DIM], fused["p3"][:, :VISUAL_DIM])


def test_a_pyramid_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="build_timm_classifier_fpn_backbone"):
        build(channels=WORD_WIDTH)


def test_words_read_the_image_where_the_head_says_so() -> None:
    features, language = inputs()
    _, as_they_came = build()(features, language)
    assert as_they_came is language
    head = build(name="ClassifierFusedDynamicHead")
    _, fused = head(features, language)
    features["p3"][:, :VISUAL_DIM] += torch.randn(VISUAL_DIM, 8, 8)
    _, of_another_image = head(features, language)
    assert not torch.allclose(fused.hidden, of_another_image.hidden)


def test_a_reading_head_starts_with_the_maps_of_the_head_whose_weights_it_takes() -> None:
    first, reading = build().double(), build(name="ClassifierReadingDynamicHead").double()
    weights = first.state_dict()
    missing = reading.load_state_dict(weights, strict=False).missing_keys
    assert len(missing) + len(weights) == len(reading.state_dict())
    assert all(name.startswith(reading.checkpoint_optional) for name in missing)
    features, language = inputs()
    features = {name: level.double() for name, level in features.items()}
    language = replace(language, hidden=language.hidden.double())
    maps, _ = first(features, language)
    same_maps, _ = reading(features, language)
    for name, level in maps.items():
        torch.testing.assert_close(same_maps[name], level)


@pytest.mark.parametrize("part", ["the classifier's words", "the place"])
def test_words_of_a_reading_head_read_what_is_seen_and_where(part: str) -> None:
    head = build(name="ClassifierReadingDynamicHead")
    torch.nn.init.normal_(head.seen.weight)
    features, language = inputs()
    words = head.words(features, language, range(len(language.mask))).hidden
    for name, level in features.items():
        if part == "the place":
            features[name] = level.flip(-1)
        else:
            level[:, VISUAL_DIM:] += 1
    assert not torch.allclose(
        head.words(features, language, range(len(language.mask))).hidden, words
    )
