"""The one-stage grounding head: a box, a centerness and a logit per token at every location."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.box_coder import BoxCoder, to_inclusive
from glipv2_d2.layers.initialization import init_prediction
from glipv2_d2.modeling.anchors import AnchorGenerator
from glipv2_d2.modeling.assigner import ATSSAssigner
from glipv2_d2.modeling.heads.base import TEXT, ProposalGenerator, RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import build_region_word_score
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_targets
from glipv2_d2.modeling.postprocess import DetectionsPerImage, PostprocessSettings, detect_labels
from glipv2_d2.modeling.registry import build_part
from glipv2_d2.structures import (
    DensePredictions,
    DenseTargets,
    FusedFeatures,
    TextFeatures,
    TokenBatch,
    gt_instances_of,
)


def build_grounding_proposal_generator(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
) -> ProposalGenerator:
    """Build the proposal generator that ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` selects."""
    name, key = cfg.MODEL.PROPOSAL_GENERATOR.NAME, "MODEL.PROPOSAL_GENERATOR.NAME"
    shapes = {**input_shape, TEXT: ShapeSpec(channels=language_dim)}
    return build_part(PROPOSAL_GENERATOR_REGISTRY, name, ProposalGenerator, key, cfg, shapes)


@PROPOSAL_GENERATOR_REGISTRY.register()
class GroundingRPN(ProposalGenerator, Configurable):
    """ATSS head over fused features: GLIP's VLDyHead without tower (glip_reference.md 10-13)."""

    config_keys: ClassVar[dict[str, str]] = {
        "score_thresh": "MODEL.GROUNDING.SCORE_THRESH",
        "nms_thresh": "MODEL.GROUNDING.NMS_THRESH",
        "pre_nms_topk": "MODEL.GROUNDING.PRE_NMS_TOPK",
        "detections_per_prompt": "MODEL.GROUNDING.DETECTIONS_PER_PROMPT",
        "aggregation": "MODEL.GROUNDING.SCORE_AGGREGATION",
        "topk": "MODEL.GROUNDING.ATSS_TOPK",
    }

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        strides: list[int],
        max_tokens: int,
        region_word: RegionWordScore,
        anchor_generator: AnchorGenerator,
        assigner: ATSSAssigner,
        box_coder: BoxCoder,
        postprocess: PostprocessSettings,
        loss_settings: dict[str, float],
    ) -> None:
        """
        Args:
            visual_dim: C, channels of every level.
            strides: strides of the levels, finest first.
            max_tokens: limit of a prompt; see
                :func:`~glipv2_d2.modeling.losses.grounding.token_targets`.
            postprocess: thresholds and limits of detection.
            loss_settings: alpha, gamma and the three weights of
                :func:`~glipv2_d2.modeling.losses.dense.grounding_losses`.
        """
        super().__init__()
        self.max_tokens = max_tokens
        self.region_word = region_word
        self.anchor_generator = anchor_generator
        self.assigner = assigner
        self.box_coder = box_coder
        self.postprocess = postprocess
        self.loss_settings = loss_settings
        self.bbox_pred = nn.Conv2d(visual_dim, 4, kernel_size=1)
        self.centerness = nn.Conv2d(visual_dim, 1, kernel_size=1)
        init_prediction(self.bbox_pred)
        init_prediction(self.centerness)
        self.level_scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in strides])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        settings = cfg.MODEL.GROUNDING
        levels = [shape for name, shape in input_shape.items() if name != TEXT]
        strides = [level.stride for level in levels]
        visual_dim = levels[0].channels
        return {
            "visual_dim": visual_dim,
            "strides": strides,
            "max_tokens": cfg.MODEL.PROMPT.MAX_TOKENS,
            "region_word": build_region_word_score(cfg, visual_dim, input_shape[TEXT].channels),
            "anchor_generator": AnchorGenerator(strides=strides, scale=settings.ANCHOR_SCALE),
            "assigner": ATSSAssigner(topk=settings.ATSS_TOPK),
            "box_coder": BoxCoder(),
            "postprocess": PostprocessSettings(
                score_thresh=settings.SCORE_THRESH,
                pre_nms_topk=settings.PRE_NMS_TOPK,
                nms_thresh=settings.NMS_THRESH,
                detections_per_prompt=settings.DETECTIONS_PER_PROMPT,
                aggregation=settings.SCORE_AGGREGATION,
            ),
            "loss_settings": {
                "alpha": settings.FOCAL_ALPHA,
                "gamma": settings.FOCAL_GAMMA,
                "token_weight": settings.TOKEN_LOSS_WEIGHT,
                "box_weight": settings.BOX_LOSS_WEIGHT,
                "centerness_weight": settings.CENTERNESS_LOSS_WEIGHT,
            },
        }

    def predict(self, fused: FusedFeatures) -> DensePredictions:
        levels = list(fused.fused_features.values())
        regions = [level.flatten(2).transpose(1, 2) for level in levels]  # (N, A_i, C)
        deltas = [
            self.bbox_pred(level).flatten(2).transpose(1, 2) * scale
            for level, scale in zip(levels, self.level_scales, strict=True)
        ]
        centerness = [self.centerness(level).flatten(1) for level in levels]
        return DensePredictions(
            token_logits_per_level=self.region_word(regions, fused.region_text),
            box_deltas_per_level=deltas,
            centerness_per_level=centerness,
            anchors_per_level=self.anchor_generator(levels),
        )

    def label_anchors(self, predictions: DensePredictions, fused: FusedFeatures) -> DenseTargets:
        return self.match_anchors(
            predictions.anchors_per_level, fused.tokens, gt_instances_of(fused.queries)
        )

    def losses(
        self, predictions: DensePredictions, targets: DenseTargets, fused: FusedFeatures
    ) -> dict[str, Tensor]:
        """L_loc + L_intra of a batch (glip_reference.md 13.3)."""
        return grounding_losses(
            predictions,
            targets,
            fused.tokens.mask,
            box_coder=self.box_coder,
            **self.loss_settings,
        )

    def score_labels(
        self, predictions: DensePredictions, fused: FusedFeatures
    ) -> list[LabelScores]:
        return [
            LabelScores.of_image(predictions, index, positive_map, self.postprocess.aggregation)
            for index, positive_map in enumerate(fused.tokens.positive_maps)
        ]

    def detect(
        self, scores: Sequence[LabelScores], fused: FusedFeatures
    ) -> list[DetectionsPerImage]:
        return [
            detect_labels(
                label_scores,
                image_size,
                self.postprocess,
                self.box_coder,
                query.prompt.negative_labels,
            )
            for label_scores, image_size, query in zip(
                scores, fused.image_sizes, fused.queries, strict=True
            )
        ]

    def region_word_logits(self, regions: Tensor, text: TextFeatures) -> Tensor:
        (logits,) = self.region_word([regions], text)
        return logits

    @torch.no_grad()
    def match_anchors(
        self, anchors_per_level: list[Tensor], tokens: TokenBatch, gt_instances: list[Instances]
    ) -> DenseTargets:
        """Match anchors to ground truth, and encode its boxes and tokens.

        Args:
            anchors_per_level: (A_i, 4).
            tokens: the prompts of N images.
            gt_instances: per image, ``gt_boxes`` in pixels of the network input (Detectron2's
                corners) and ``gt_classes``, classes of the image's prompt.
        """
        anchors = torch.cat(anchors_per_level)
        matched_idxs, token_rows, box_deltas = [], [], []
        for i, instances in enumerate(gt_instances):
            gt_boxes = to_inclusive(instances.gt_boxes.tensor)
            matched = self.assigner(anchors_per_level, gt_boxes)
            gt_tokens = gt_positive_map(
                tokens.positive_maps[i], tokens.prompts[i].classes, instances.gt_classes
            )
            deltas = torch.zeros_like(anchors)
            positive = matched >= 0
            deltas[positive] = self.box_coder.encode(gt_boxes[matched[positive]], anchors[positive])
            matched_idxs.append(matched)
            token_rows.append(token_targets(matched, gt_tokens, self.max_tokens))
            box_deltas.append(deltas)
        return DenseTargets(
            torch.stack(matched_idxs), torch.stack(token_rows), torch.stack(box_deltas)
        )


def gt_positive_map(
    positive_map: Tensor, label_classes: tuple[int, ...], gt_classes: Tensor
) -> Tensor:
    """The tokens that spell the class of each ground truth.

    Args:
        positive_map: (labels, T) bool.
        label_classes: the class of each label.
        gt_classes: (G,) classes of the ground truth.

    Returns:
        (G, T) bool.

    Raises:
        ValueError: the ground truth has a class that the prompt lacks.
    """
    classes = torch.tensor(label_classes, device=gt_classes.device, dtype=gt_classes.dtype)
    is_label = gt_classes[:, None] == classes  # (G, labels)
    if len(gt_classes) and not bool(is_label.any(dim=1).all()):
        missing = gt_classes[~is_label.any(dim=1)].unique().tolist()
        raise ValueError(
            f"gt_classes {missing} are not in the prompt, which has the classes "
            f"{sorted(set(label_classes))}: the mapper must drop such boxes or add their classes"
        )
    return (is_label.float() @ positive_map.float()) > 0
