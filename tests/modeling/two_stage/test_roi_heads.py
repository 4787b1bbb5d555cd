"""With Detectron2's classifier as text embeddings, the ROI heads equal Detectron2's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import StandardROIHeads, build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.two_stage import CASCADE, two_stage_cfg
from torch import Tensor, nn

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.two_stage import RegionWordOutputLayers

NUM_CLASSES = 7
LEVELS = {"p3": 8, "p4": 16, "p5": 32}
SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in LEVELS.items()}
DETECTRON2 = {
    "OpenVocabularyROIHeads": "StandardROIHeads",
    "OpenVocabularyCascadeROIHeads": "CascadeROIHeads",
}
KINDS = {
    "standard": (),
    "cascade": CASCADE,
    "predicted boxes": ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
}


def build(kind: str) -> tuple[StandardROIHeads, StandardROIHeads]:
    """Ours and Detectron2's, with the same weights."""
    cfg = two_stage_cfg(
        *("MODEL.GROUNDING.REGION_WORD_SCORE", "DotProductScore", "MODEL.GROUNDING.LOG_SCALE", 0.0),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *KINDS[kind]),
    )
    torch.manual_seed(0)
    ours = build_roi_heads(cfg, {**SHAPES, TEXT: ShapeSpec(channels=NUM_CLASSES)})
    theirs = build_roi_heads(detectron2s(cfg), SHAPES)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for our_predictor, their_predictor in zip(predictors(ours), predictors(theirs), strict=True):
        copy_classifier(their_predictor, our_predictor)
    return ours, theirs


def detectron2s(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.NAME = DETECTRON2[cfg.MODEL.ROI_HEADS.NAME]
    return cfg


def predictors(heads: StandardROIHeads) -> list[Any]:
    predictor = heads.box_predictor
    return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]


@torch.no_grad()
def copy_classifier(source: FastRCNNOutputLayers, target: RegionWordOutputLayers) -> None:
    """Make the score of the k-th unit vector the k-th logit of the source."""
    *rows, background = nn.init.normal_(source.cls_score.weight)
    *biases, background_bias = nn.init.normal_(source.cls_score.bias)
    # DotProductScore halves its text projection.
    target.region_word.projection.weight.copy_(2 * torch.stack(rows).T)
    target.region_word.projection.bias.zero_()
    target.region_word.bias_language.copy_(torch.stack(biases))
    target.region_word.bias.zero_()
    target.background.weight.copy_(background[None])
    target.background.bias.copy_(background_bias[None])


def features(requires_grad: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = {
        name: torch.randn(2, 16, 64 // stride, 64 // stride, generator=generator)
        for name, stride in LEVELS.items()
    }
    return {name: x.requires_grad_(requires_grad) for name, x in maps.items()}


def proposals() -> list[Instances]:
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 8, 50, 30], [0, 0, 60, 60], [30, 30, 44, 60]])
    return [
        Instances((64, 64), proposal_boxes=Boxes(b), objectness_logits=torch.zeros(len(b)))
        for b in (boxes, boxes[1:])
    ]


def targets() -> list[Instances]:
    boxes = torch.tensor([[5.0, 4, 32, 42], [20, 6, 52, 32]])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 10:30, 22:30] = True
    return [
        Instances(
            (64, 64),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.tensor(classes),
            gt_masks=BitMasks(masks),
        )
        for classes in ([1, 4], [6, 0])
    ]


def both(kind: str) -> Iterator[tuple[StandardROIHeads, Any]]:
    """Ours and Detectron2's, each with its call on images, features, proposals and targets."""
    ours, theirs = build(kind)
    classes = [ClassEmbeddings(torch.eye(NUM_CLASSES), tuple(range(NUM_CLASSES)))] * 2
    yield ours, functools.partial(ours, class_embeddings=classes)
    yield theirs, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_detections_equal_detectron2s(kind: str) -> None:
    results = []
    for heads, call in both(kind):
        heads.eval()
        with torch.no_grad():
            detections, losses = call(None, features(), proposals())
        assert losses == {}
        results.append(detections)
    for ours, theirs in zip(*results, strict=True):
        assert len(theirs) > 0
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        torch.testing.assert_close(ours.pred_masks, theirs.pred_masks)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_detectron2s(kind: str) -> None:
    results = []
    for heads, call in both(kind):
        maps = features(requires_grad=True)
        # Proposals are sampled.
        torch.manual_seed(0)
        with EventStorage() as storage:
            _, losses = call(None, maps, proposals(), targets())
        sum(losses.values()).backward()
        box_gradients = [predictor.bbox_pred.weight.grad for predictor in predictors(heads)]
        gradients = [*(x.grad for x in maps.values()), *box_gradients]
        results.append((losses, gradients, {k: v[0] for k, v in storage.latest().items()}))
    (losses, gradients, logged), (their_losses, their_gradients, their_logged) = results
    assert all(loss > 0 for loss in their_losses.values())
    torch.testing.assert_close(losses, their_losses)
    torch.testing.assert_close(gradients, their_gradients)
    assert logged == pytest.approx(their_logged)
