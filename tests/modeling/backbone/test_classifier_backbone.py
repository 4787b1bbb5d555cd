from __future__ import annotations

import timm
import torch
from torch import nn

from glipv2_d2.modeling.backbone.classifier_backbone import TEMPERATURE, ClassifierBackbone


def make_backbone() -> ClassifierBackbone:
    torch.manual_seed(0)
    classifier = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    return ClassifierBackbone(classifier=classifier, class_embeddings=torch.randn(5, 7))


def test_shapes_are_those_it_tells() -> None:
    backbone = make_backbone()
    features = backbone(torch.randn(1, 3, 64, 96))
    for name, shape in backbone.output_shape().items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (1, shape.channels, *size)


def test_words_seen_are_the_probable_classes_names() -> None:
    backbone = make_backbone()
    last = torch.randn(2, backbone.classifier.num_features, 3, 4)
    seen = backbone.words_seen(last)
    logits = backbone.classifier.classifier(last[1, :, 2, 3])
    probabilities = (logits / TEMPERATURE).softmax(dim=0)
    names = backbone.class_embeddings
    expected = sum(p * name for p, name in zip(probabilities, names, strict=True)) * 7**0.5
    torch.testing.assert_close(seen[1, :, 2, 3], expected)


def test_the_classifier_stays_frozen_in_training() -> None:
    backbone = nn.Sequential(make_backbone()).train()[0]
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.classifier.modules())
