"""Masks of levels with evidence."""

from __future__ import annotations

import pytest
import torch
from helpers.masks import MASKS
from mini_models import PHRASES, mini_model
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_mini.modeling import EvidenceROIHeads
from glipv2_mini.modeling.evidence_backbone import EVIDENCE_CHANNELS, FEATURE_CHANNELS
from glipv2_mini.modeling.nanodet import STRIDES

WIDTH = 16
ROI_HEADS = ("MODEL.ROI_HEADS.NAME", "EvidenceROIHeads")


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return mini_model(*PHRASES, *MASKS, *ROI_HEADS)


def random_levels() -> dict[str, Tensor]:
    """Of an image of 64 x 96 pixels."""
    random = torch.Generator().manual_seed(0)
    channels = FEATURE_CHANNELS + EVIDENCE_CHANNELS
    return {
        name: torch.rand(1, channels, 64 // stride, 96 // stride, generator=random)
        for name, stride in zip(("p3", "p4", "p5"), STRIDES, strict=True)
    }


@torch.no_grad()
def masks_of(model: GLIPv2, levels: dict[str, Tensor]) -> Tensor:
    boxes = torch.tensor([[8.0, 8.0, 40.0, 56.0], [0.0, 0.0, 96.0, 64.0]])
    text = torch.ones(len(boxes), WIDTH)
    return model.roi_heads.mask_logits(levels, [boxes], [text])


@pytest.mark.parametrize(
    ("part", "matters"),
    [
        (slice(0, 128), True),
        (slice(128, 208), True),
        (slice(208, 212), False),
        (slice(212, 223), False),
        (slice(223, 224), False),
        (slice(224, None), False),
    ],
    ids=["features", "classes", "distances", "colours", "is cut out", "ImageNet's logits"],
)
def test_masks_depend_on_features_and_class_probabilities_only(
    model: GLIPv2, part: slice, matters: bool
) -> None:
    levels = random_levels()
    before = masks_of(model, levels)
    for level in levels.values():
        level[:, part] += torch.rand_like(level[:, part])
    after = masks_of(model, levels)
    assert torch.equal(after, before) != matters


def test_the_heads_are_built_by_their_name(model: GLIPv2) -> None:
    assert isinstance(model.roi_heads, EvidenceROIHeads)
    (weight,) = (p for n, p in model.roi_heads.entry.named_parameters() if n.endswith("weight"))
    assert weight.shape == (8, 128 + 80, 1, 1)
