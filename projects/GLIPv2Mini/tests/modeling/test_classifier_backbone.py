from __future__ import annotations

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from mini_models import mini_cfg
from torch import nn

from glipv2_d2.layers.drop_block import DropBlock
from glipv2_mini.modeling import build_timm_classifier_fpn_backbone
from glipv2_mini.modeling.classifier_backbone import (
    TEMPERATURE,
    ClassifierBackbone,
    ClassifierFPN,
)


def make_backbone() -> ClassifierBackbone:
    torch.manual_seed(0)
    classifier = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    return ClassifierBackbone(classifier=classifier, class_embeddings=torch.randn(5, 7))


def test_output_shape_matches_the_features() -> None:
    backbone = make_backbone()
    features = backbone(torch.randn(1, 3, 64, 96))
    for name, shape in backbone.output_shape().items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (1, shape.channels, *size)


def make_pyramid() -> ClassifierFPN:
    return ClassifierFPN(
        bottom_up=make_backbone(),
        in_features=["c3", "c4", "c5"],
        out_channels=8,
        drop_block=DropBlock(prob=0.0, block_size=3),
    ).eval()


def test_every_level_has_class_embeddings_as_its_last_channels() -> None:
    pyramid = make_pyramid()
    levels = pyramid(torch.randn(1, 3, 96, 64))
    for name, shape in pyramid.output_shape().items():
        size = (-(-96 // shape.stride), -(-64 // shape.stride))
        assert levels[name].shape == (1, shape.channels, *size) == (1, 8 + 7, *size)


def test_the_level_of_stride_32_pools_windows_of_three_cells() -> None:
    pyramid = make_pyramid()
    image = torch.randn(1, 3, 96, 96)
    last = pyramid.bottom_up(image)["c5"][:, : pyramid.bottom_up.classifier.num_features]
    expected = pyramid.bottom_up.embed_classes(last.mean(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(pyramid(image)["p5"][:, 8:, 1, 1], expected[..., 0, 0])


def test_class_embeddings_are_weighted_by_probability() -> None:
    backbone = make_backbone()
    last = torch.randn(2, backbone.classifier.num_features, 3, 4)
    ours = backbone.embed_classes(last)
    logits = backbone.classifier.classifier(last[1, :, 2, 3])
    probabilities = (logits / TEMPERATURE).softmax(dim=0)
    names = backbone.class_embeddings
    expected = sum(p * name for p, name in zip(probabilities, names, strict=True)) * 7**0.5
    torch.testing.assert_close(ours[1, :, 2, 3], expected)


def test_the_classifier_stays_frozen_in_training() -> None:
    backbone = nn.Sequential(make_backbone()).train()[0]
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.classifier.modules())


def test_features_are_selected_by_stride() -> None:
    """The first feature of this model has stride 4, EfficientNet's has 2."""
    classifier = timm.create_model("convnext_atto", num_classes=5)
    backbone = ClassifierBackbone(classifier=classifier, class_embeddings=torch.randn(5, 7))
    sizes = {name: x.shape[-1] for name, x in backbone(torch.randn(1, 3, 64, 64)).items()}
    assert sizes == {"c3": 8, "c4": 4, "c5": 2}


def test_a_classifier_without_a_pyramid_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = timm.create_model("convnext_atto", num_classes=5)
    monkeypatch.setattr(classifier, "feature_info", classifier.feature_info[:1])
    with pytest.raises(ValueError, match=r"strides \[4\]"):
        ClassifierBackbone(classifier=classifier, class_embeddings=torch.randn(5, 7))


def test_a_random_language_backbone_raises() -> None:
    with pytest.raises(ValueError, match=r"LANGUAGE_BACKBONE\.WEIGHTS is empty"):
        build_timm_classifier_fpn_backbone(mini_cfg(), ShapeSpec(channels=3))


def test_a_pyramid_without_c3_raises() -> None:
    with pytest.raises(ValueError, match=r"in_features is \['c4', 'c5'\].*needs c3, c4 and c5$"):
        ClassifierFPN(
            bottom_up=make_backbone(),
            in_features=["c4", "c5"],
            out_channels=8,
            drop_block=DropBlock(prob=0.0, block_size=3),
        )
