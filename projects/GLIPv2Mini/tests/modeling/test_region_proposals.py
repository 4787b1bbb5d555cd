"""Class-agnostic regions of a tiny model with random weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.models import random_image
from mini_models import mini_cfg, mini_model
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import ImageFeatures
from glipv2_mini.modeling.evidence_backbone import (
    EVIDENCE_CHANNELS,
    FEATURE_CHANNELS,
    EvidenceLevel,
)
from glipv2_mini.modeling.nanodet import STRIDES, boxes_of
from glipv2_mini.modeling.region_proposals import RegionProposer, build_region_proposer
from glipv2_mini.modeling.regions import Regions

NUM_REGIONS = 6


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return mini_model()


def make_proposer(model: GLIPv2, *opts: object) -> RegionProposer:
    cfg = mini_cfg("MODEL.REGION_ENCODER.NUM_REGIONS", NUM_REGIONS, *opts)
    return build_region_proposer(cfg, model.backbone.output_shape())


def encode(model: GLIPv2, images: list[Tensor]) -> ImageFeatures:
    return model.encode_images([{"image": image} for image in images])


def propose(model: GLIPv2, images: list[Tensor], *opts: object) -> Regions:
    return make_proposer(model, *opts)(model, encode(model, images))


def coordinates(level: Tensor) -> Tensor:
    """(1, C, H, W): x and y relative to the map, and zeros."""
    height, width = level.shape[-2:]
    x = (torch.arange(width) + 0.5).expand(height, width) / width
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    return F.pad(torch.stack([x, y])[None], (0, 0, 0, 0, 0, level.shape[1] - 2))


def test_every_image_has_the_same_number_of_regions_inside_it(model: GLIPv2) -> None:
    regions = propose(model, [random_image(128, 160), random_image(96, 128, seed=1)])
    assert regions.features.shape == (2, NUM_REGIONS, FEATURE_CHANNELS)
    channels = FEATURE_CHANNELS + EVIDENCE_CHANNELS
    assert regions.fused_features.shape == (2, NUM_REGIONS, channels)
    centers, sizes, scores = regions.boxes.split((2, 2, 1), dim=-1)
    assert (sizes > 0).all() and (scores > 0).all()
    assert (centers - sizes / 2 >= -1e-5).all() and (centers + sizes / 2 <= 1 + 1e-5).all()
    assert (scores.diff(dim=1) <= 0).all()


def test_a_region_is_pooled_at_its_box(model: GLIPv2) -> None:
    """In maps of x and y coordinates the mean of a box is its centre."""
    features = encode(model, [random_image(256, 256)])
    maps = {name: coordinates(level) for name, level in features.levels.items()}
    encoder = SimpleNamespace(
        language_backbone=model.language_backbone,
        fused_head=model.fused_head,
        proposal_generator=model.proposal_generator,
        tokenize=model.tokenize,
        encode_text=model.encode_text,
        fuse=lambda _, queries, tokens, text: model.fuse(features, queries, tokens, text),
    )
    regions = make_proposer(model, "MODEL.REGION_ENCODER.NUM_REGIONS", 50)(
        encoder, replace(features, levels=maps)
    )
    centers, sizes = regions.boxes[..., :2], regions.boxes[..., 2:4]
    # ROIAlign repeats the first and the last pixel beyond their centres.
    is_inside = ((centers - 0.5).abs() + sizes / 2 < 0.45).all(dim=-1)
    assert is_inside.any()
    pooled = regions.features[is_inside][:, :2]
    torch.testing.assert_close(pooled, centers[is_inside], atol=0.01, rtol=0)


def test_regions_are_the_boxes_of_the_most_probable_classes_whatever_the_prompt(
    model: GLIPv2,
) -> None:
    features = encode(model, [random_image(128, 160)])
    regions = make_proposer(model)(model, features)
    parts = [EvidenceLevel.split(level, dim=1) for level in features.levels.values()]
    scores = torch.cat([x.class_probs.amax(dim=1).flatten() for x in parts])
    boxes = torch.cat(
        [boxes_of(x.distances, stride)[0] for x, stride in zip(parts, STRIDES, strict=True)]
    )
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([160.0, 128, 160, 128]))
    kept = nms(boxes, scores, iou_threshold=0.5)[:NUM_REGIONS]
    sizes = boxes[kept, 2:] - boxes[kept, :2]
    expected = torch.cat([boxes[kept, :2] + sizes / 2, sizes], dim=1) / torch.tensor([160, 128] * 2)
    torch.testing.assert_close(regions.boxes[0, :, :4], expected, atol=1e-4, rtol=0)


def test_an_image_does_not_depend_on_the_others_of_its_batch(model: GLIPv2) -> None:
    images = [random_image(seed=seed) for seed in (0, 1)]
    together = propose(model, images)
    for row, image in enumerate(images):
        alone = propose(model, [image])
        torch.testing.assert_close(together.rows([row]), alone, atol=1e-4, rtol=1e-4)


def test_proposals_are_the_same_in_training_and_keep_the_mode(model: GLIPv2) -> None:
    expected = propose(model, [random_image()])
    other = mini_model("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.5)
    other.load_state_dict(model.state_dict())
    other.train()
    other.backbone.eval()
    in_training = [part for part in other.modules() if part.training]
    torch.testing.assert_close(propose(other, [random_image()]), expected)
    assert [part for part in other.modules() if part.training] == in_training


def test_only_the_pooled_maps_receive_gradients_from_regions() -> None:
    model = mini_model().train()
    features = encode(model, [random_image()])
    for level in features.levels.values():
        level.requires_grad_()
    regions = make_proposer(model)(model, features)
    (regions.features.sum() + regions.fused_features.sum() + regions.boxes.sum()).backward()
    assert all(p.grad is None for p in model.parameters())
    gradients = [level.grad for level in features.levels.values() if level.grad is not None]
    assert any(grad[:, :FEATURE_CHANNELS].any() for grad in gradients)
    assert not any(grad[:, FEATURE_CHANNELS:].any() for grad in gradients)


def test_an_image_with_fewer_detections_is_padded_with_zeros(model: GLIPv2) -> None:
    regions = propose(model, [random_image(32, 32)], "MODEL.REGION_ENCODER.NMS_THRESH", 0.0)
    is_empty = (regions.boxes == 0).all(dim=-1)[0]
    assert 0 < int(is_empty.sum()) < NUM_REGIONS
    assert is_empty.tolist() == sorted(is_empty.tolist())
    assert (regions.features[0, is_empty] == 0).all()


def test_an_empty_prompt_raises(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"prompt is ' '.*MODEL\.REGION_ENCODER\.PROMPT"):
        make_proposer(model, "MODEL.REGION_ENCODER.PROMPT", " ")
