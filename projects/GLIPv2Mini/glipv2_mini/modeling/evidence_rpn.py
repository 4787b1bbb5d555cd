"""The grounding head whose boxes and scores start from a detector's."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.utils import comm
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from glipv2_d2.config import configurable
from glipv2_d2.layers.box_coder import to_inclusive
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.class_evidence import build_class_evidence
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.language import build_language_backbone
from glipv2_d2.modeling.language.text_embedder import TextEmbedder
from glipv2_d2.structures import DensePredictions, FusedFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.description_score import Descriptions, DescriptionScore, describe
from glipv2_mini.modeling.evidence_backbone import FEATURE_CHANNELS, EvidenceLevel
from glipv2_mini.modeling.evidence_score import (
    VISUAL_DIM,
    EvidenceScore,
    LearnedEvidenceScore,
    visual_of,
)
from glipv2_mini.modeling.nanodet import STRIDES, boxes_of, coco_class_names
from glipv2_mini.modeling.score_regression import RegionStatistics
from glipv2_mini.modeling.stored_embeddings import StoredEmbeddings, encoder_fingerprint
from glipv2_mini.text import phrases
from glipv2_mini.text.class_kinds import coco_names_with_kinds, imagenet_names_with_kinds

# The class probabilities of a detector with a quality focal loss include how well the box fits:
# centerness starts at about 1.
INITIAL_CENTERNESS_LOGIT = 4.0
# Pixels; the logarithm of a box's size must be finite.
MIN_DISTANCE = 0.05


@PROPOSAL_GENERATOR_REGISTRY.register()
class EvidenceRPN(GroundingRPN):
    """Boxes of NanoDet plus learned deltas, scored by an :class:`EvidenceScore`.

    A :class:`DescriptionScore` compares the boxes of a phrase such as "the left dog". With the
    learned parts at zero, as initialised, it detects the words of a prompt without training, and
    without ``learns_boxes`` they stay there. Our choice; GLIP's head has only the features of a
    location.
    """

    phrase_parser: ClassVar[str] = phrases.__name__

    @configurable
    def __init__(self, *, learns_boxes: bool = True, **kwargs: Any) -> None:
        """
        Args:
            learns_boxes: train the box deltas and the centerness.
            kwargs: as in :class:`GroundingRPN`.
        """
        super().__init__(**kwargs)
        self.description = DescriptionScore()
        for layer in (self.bbox_pred, self.centerness):
            nn.init.zeros_(layer.weight)
        assert self.centerness.bias is not None
        nn.init.constant_(self.centerness.bias, INITIAL_CENTERNESS_LOGIT)
        for part in (self.bbox_pred, self.centerness, self.level_scales):
            part.requires_grad_(learns_boxes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        language_dim = input_shape[TEXT].channels
        return {
            **super().from_config(cfg, input_shape),
            "visual_dim": FEATURE_CHANNELS,
            "learns_boxes": cfg.MODEL.EVIDENCE.LEARNS_BOXES,
            "region_word": build_evidence_score(cfg, language_dim),
        }

    def predict(self, fused: FusedFeatures) -> DensePredictions:
        return self.predict_described(fused, self.describe_labels(fused.tokens))

    def describe_labels(self, tokens: TokenBatch) -> Tensor:
        return describe(tokens)

    def predict_described(self, fused: FusedFeatures, descriptions: Tensor) -> DensePredictions:
        levels = list(fused.fused_features.values())
        anchors_per_level = self.anchor_generator(levels)
        parts = [EvidenceLevel.split(level, dim=1) for level in levels]
        deltas = [
            self.box_deltas(part, stride, anchors) + self.learned_deltas(part.features, scale)
            for part, stride, anchors, scale in zip(
                parts, STRIDES, anchors_per_level, self.level_scales, strict=True
            )
        ]
        boxes = self.box_coder.decode(
            torch.cat(deltas, dim=1).detach(), torch.cat(anchors_per_level)
        )
        logits = self.region_word(
            [level.flatten(2).transpose(1, 2) for level in levels], fused.region_text
        )
        color_probs = torch.cat([x.color_probs.flatten(2) for x in parts], dim=2)
        return DensePredictions(
            token_logits_per_level=self.description(
                logits, boxes, color_probs.transpose(1, 2), Descriptions.split(descriptions)
            ),
            box_deltas_per_level=deltas,
            centerness_per_level=[self.centerness(part.features).flatten(1) for part in parts],
            anchors_per_level=anchors_per_level,
        )

    def score_objects(
        self, predictions: DensePredictions, fused: FusedFeatures
    ) -> list[LabelScores]:
        """Scores of one label, "an object", per query: the most probable class of the detector."""
        objectness_per_level = [
            EvidenceLevel.split(level, dim=1).class_probs.amax(dim=1).flatten(1)
            for level in fused.fused_features.values()
        ]
        return [
            LabelScores(
                scores_per_level=[level[i, :, None].float() for level in objectness_per_level],
                centerness_per_level=[
                    torch.ones_like(level[i]).float() for level in objectness_per_level
                ],
                box_deltas_per_level=[
                    level[i].float() for level in predictions.box_deltas_per_level
                ],
                anchors_per_level=predictions.anchors_per_level,
            )
            for i in range(len(fused.queries))
        ]

    @torch.no_grad()
    def initialize_from(self, batches: Iterable[tuple[FusedFeatures, DensePredictions]]) -> None:
        """Regress the region-word products of a :class:`LearnedEvidenceScore`.

        A training starts with products that know the names of its images, in the time of a few
        iterations (our choice).

        Raises:
            ValueError: the score has no products to learn, or no batch has images with boxes.
        """
        score = self.region_word
        if not isinstance(score, LearnedEvidenceScore):
            raise ValueError(
                "SOLVER.INITIALIZE_FROM_IMAGES needs learned products: set "
                "MODEL.EVIDENCE.LEARNS_BOXES True, or SOLVER.INITIALIZE_FROM_IMAGES 0"
            )
        statistics = RegionStatistics(VISUAL_DIM)
        text_of: dict[str, Tensor] = {}
        for fused, predictions in batches:
            add_regions(statistics, fused, self.boxes_of(predictions))
            text_of |= text_of_names(fused, score.centered(fused.region_text).hidden)
        gathered = comm.all_gather((statistics, text_of))
        for _, texts in gathered:
            text_of = texts | text_of
        names = sorted(text_of)
        if not names:
            raise ValueError("SOLVER.INITIALIZE_FROM_IMAGES: no image of DATASETS.TRAIN has boxes")
        total = RegionStatistics(VISUAL_DIM)
        total.merge(part for part, _ in gathered)
        score.start_from(total.regress(names, torch.stack([text_of[name] for name in names])))

    def boxes_of(self, predictions: DensePredictions) -> Tensor:
        """(N, A, 4), XYXY in pixels of the network input."""
        return self.box_coder.decode(
            torch.cat(predictions.box_deltas_per_level, dim=1),
            torch.cat(predictions.anchors_per_level),
        )

    def box_deltas(self, level: EvidenceLevel, stride: int, anchors: Tensor) -> Tensor:
        """(N, A_i, 4): the deltas from the anchors to NanoDet's boxes."""
        distances = level.distances.clamp(min=MIN_DISTANCE)
        return self.box_coder.encode(to_inclusive(boxes_of(distances, stride)), anchors)

    def learned_deltas(self, features: Tensor, scale: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, h * w, 4)."""
        return self.bbox_pred(features).flatten(2).transpose(1, 2) * scale


def add_regions(statistics: RegionStatistics, fused: FusedFeatures, boxes: Tensor) -> None:
    """Add the regions of a training batch, whose boxes are (N, A, 4), to statistics."""
    levels = [level.flatten(2).transpose(1, 2) for level in fused.fused_features.values()]
    visual = visual_of(EvidenceLevel.split(torch.cat(levels, dim=1)))
    for i, query in enumerate(fused.queries):
        if query.is_placeholder or query.gt_instances is None:
            continue
        phrases = dict(zip(query.prompt.classes, query.prompt.phrases, strict=True))
        gt = query.gt_instances
        names = [phrases[c] for c in gt.gt_classes.tolist()]
        statistics.add(visual[i], box_iou(boxes[i], to_inclusive(gt.gt_boxes.tensor)), names)


def text_of_names(fused: FusedFeatures, hidden: Tensor) -> dict[str, Tensor]:
    """The mean of the normalised (N, T, D) ``hidden`` over the tokens of each name, (D,)."""
    normalized = F.normalize(full_precision(hidden), dim=-1)
    texts = {}
    for i, query in enumerate(fused.queries):
        for row, name in zip(fused.tokens.positive_maps[i], query.prompt.phrases, strict=True):
            texts[name] = normalized[i, : len(row)][row].mean(dim=0).cpu()
    return texts


def build_evidence_score(cfg: CfgNode, language_dim: int) -> EvidenceScore:
    """The score of COCO's and ImageNet's class names, embedded with the config's text encoder.

    Raises:
        ValueError: the language backbone has random weights.
    """
    if not cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS:
        raise ValueError(
            "MODEL.LANGUAGE_BACKBONE.WEIGHTS is empty, but EvidenceRPN embeds class names before "
            "MODEL.WEIGHTS is loaded: set a pretrained one"
        )
    embed = StoredEmbeddings(functools.partial(build_text_embedder, cfg), encoder_fingerprint(cfg))
    detector_evidence = build_class_evidence(coco_names_with_kinds(coco_class_names()), embed)
    classifier_evidence = build_class_evidence(
        imagenet_names_with_kinds(imagenet_class_names()), embed
    )
    if not cfg.MODEL.EVIDENCE.LEARNS_BOXES:
        return EvidenceScore(
            detector_evidence=detector_evidence,
            classifier_evidence=classifier_evidence,
            learns_scale=False,
        )
    return LearnedEvidenceScore(
        detector_evidence=detector_evidence,
        classifier_evidence=classifier_evidence,
        language_dim=language_dim,
    )


def build_text_embedder(cfg: CfgNode) -> TextEmbedder:
    """The config's text encoder, for class names."""
    tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
    return TextEmbedder(build_language_backbone(cfg).eval(), tokenizer)


def imagenet_class_names() -> list[str]:
    """The 1000 class names of ImageNet-1k, synonyms separated by commas."""
    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(info.num_classes())]
