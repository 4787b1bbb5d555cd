"""The one-stage grounding head: a box, a centerness and a score per word at every location."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from glipv2_d2.layers.box_coder import BoxCoder, to_inclusive
from glipv2_d2.layers.initialization import init_prediction
from glipv2_d2.modeling.anchors import AnchorGenerator
from glipv2_d2.modeling.assigner import ATSSAssigner
from glipv2_d2.modeling.heads.region_word import REGION_WORD_SCORE_REGISTRY
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_targets
from glipv2_d2.modeling.postprocess import (
    DetectionsPerImage,
    PostprocessSettings,
    detect,
    detect_labels,
)
from glipv2_d2.structures import (
    DensePredictions,
    DenseTargets,
    Prompt,
    TextFeatures,
    TokenBatch,
)

LANGUAGE = "language"
"""The key of ``input_shape`` under which a proposal generator finds the width of the words."""


@PROPOSAL_GENERATOR_REGISTRY.register()
class GroundingRPN(nn.Module):
    """ATSS-style head over fused features (GLIP's VLDyHead without its tower; GLIP spec 10-13).

    Another proposal generator may take its place by name: it is built with the pyramid's shapes
    plus ``ShapeSpec(channels=D)`` under "language", and called as :meth:`forward` is.
    """

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        strides: list[int],
        max_tokens: int,
        region_word: nn.Module,
        anchor_generator: nn.Module,
        assigner: ATSSAssigner,
        box_coder: BoxCoder,
        postprocess: PostprocessSettings,
        loss_settings: dict[str, float],
    ) -> None:
        """
        Args:
            visual_dim: C, channels of every level.
            strides: of the levels, finest first.
            max_tokens: the most that a prompt may have; see
                :func:`~glipv2_d2.modeling.losses.grounding.token_targets`.
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
        levels = [shape for name, shape in input_shape.items() if name != LANGUAGE]
        strides = [level.stride for level in levels]
        visual_dim = levels[0].channels
        return {
            "visual_dim": visual_dim,
            "strides": strides,
            "max_tokens": cfg.MODEL.PROMPT.MAX_TOKENS,
            "region_word": REGION_WORD_SCORE_REGISTRY.get(settings.REGION_WORD)(
                visual_dim=visual_dim,
                language_dim=input_shape[LANGUAGE].channels,
                prior_prob=settings.PRIOR_PROB,
                log_scale=settings.LOG_SCALE,
            ),
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

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        language: TextFeatures,
        tokens: TokenBatch,
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[DetectionsPerImage] | DenseTargets, dict[str, Tensor]]:
        """Detect, or with ground truth: learn.

        Args:
            images: for their sizes without padding.
            features, language: fused, of N images and their prompts.
            tokens: which tokens spell which label.
            gt_instances: per image, ``gt_boxes`` in pixels of the network input (Detectron2's
                corners) and ``gt_classes``, classes of the image's prompt.

        Returns:
            detections per image and no losses; or what every anchor should have answered, which
            other losses build on, and the losses.
        """
        predictions = self.predict(features, language)
        if gt_instances is not None:
            targets = self.label_anchors(predictions.anchors_per_level, tokens, gt_instances)
            return targets, self.losses(predictions, targets, tokens)
        detections = detect(
            predictions,
            tokens.positive_maps,
            images.image_sizes,
            self.postprocess,
            self.box_coder,
            [prompt.negative_labels for prompt in tokens.prompts],
        )
        return detections, {}

    def judge(
        self, features: dict[str, Tensor], language: TextFeatures, tokens: TokenBatch
    ) -> list[LabelScores]:
        """What every location says of every label, per image; arguments as of :meth:`forward`."""
        predictions = self.predict(features, language)
        return [
            LabelScores.of_image(predictions, index, positive_map, self.postprocess.aggregation)
            for index, positive_map in enumerate(tokens.positive_maps)
        ]

    def detect(
        self,
        judged: list[LabelScores],
        prompts: Sequence[Prompt],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[DetectionsPerImage]:
        """The detections in what was said of the labels of these prompts, per image."""
        return [
            detect_labels(
                predictions, image_size, self.postprocess, self.box_coder, prompt.negative_labels
            )
            for predictions, prompt, image_size in zip(judged, prompts, image_sizes, strict=True)
        ]

    def predict(self, features: dict[str, Tensor], language: TextFeatures) -> DensePredictions:
        """Raw outputs of every location."""
        levels = list(features.values())
        regions = [level.flatten(2).transpose(1, 2) for level in levels]  # (N, A_i, C)
        deltas = [
            self.bbox_pred(level).flatten(2).transpose(1, 2) * scale
            for level, scale in zip(levels, self.level_scales, strict=True)
        ]
        centerness = [self.centerness(level).flatten(1) for level in levels]
        return DensePredictions(
            token_logits_per_level=self.region_word(regions, language),
            box_deltas_per_level=deltas,
            centerness_per_level=centerness,
            anchors_per_level=self.anchor_generator(levels),
        )

    def match(self, regions: Tensor, language: TextFeatures) -> Tensor:
        """Region-word logits of some locations, in evaluation the same as in training.

        Args:
            regions: (N, R, C), what the fused maps hold there.
            language: (N, T, D), what regions are scored against.

        Returns:
            (N, R, T).
        """
        score = getattr(self.region_word, "as_trained", self.region_word)
        (logits,) = score([regions], language)
        return logits

    def losses(
        self, predictions: DensePredictions, targets: DenseTargets, tokens: TokenBatch
    ) -> dict[str, Tensor]:
        """L_loc + L_intra of a batch (GLIP spec 13.3)."""
        return grounding_losses(
            predictions, targets, tokens.mask, box_coder=self.box_coder, **self.loss_settings
        )

    @torch.no_grad()
    def label_anchors(
        self, anchors_per_level: list[Tensor], tokens: TokenBatch, gt_instances: list[Instances]
    ) -> DenseTargets:
        """Which ground truth each anchor answers for, in boxes and in tokens."""
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
    """The tokens that name each ground truth.

    Args:
        positive_map: (labels, T) bool.
        label_classes: the class of each label.
        gt_classes: (G,) classes of the ground truth.

    Returns:
        (G, T) bool.

    Raises:
        ValueError: a ground truth is of a class that the prompt does not ask for.
    """
    classes = torch.tensor(label_classes, device=gt_classes.device, dtype=gt_classes.dtype)
    is_label = gt_classes[:, None] == classes  # (G, labels)
    if len(gt_classes) and not bool(is_label.any(dim=1).all()):
        missing = gt_classes[~is_label.any(dim=1)].unique().tolist()
        raise ValueError(
            f"gt_classes {missing} are not in the prompt, which asks for the classes "
            f"{sorted(set(label_classes))}; a mapper has to drop such boxes or ask for them"
        )
    return (is_label.float() @ positive_map.float()) > 0
