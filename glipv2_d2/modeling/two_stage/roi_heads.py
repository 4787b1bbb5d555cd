"""Detectron2's ROI heads that classify regions by text embeddings.

``class_embeddings`` is a list with the :class:`ClassEmbeddings` of each image of the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.heads.roi_heads import has_masks
from glipv2_d2.modeling.two_stage.box_predictor import Predictions, RegionWordOutputLayers
from glipv2_d2.modeling.two_stage.closed_set_predictor import ClosedSetPredictions


class OpenVocabularyROIHeadsBase(StandardROIHeads):
    """Base of the ROI heads here: passes class embeddings on to the box branch.

    ``input_shape`` has the pyramid's shapes plus ``ShapeSpec(channels=D)`` under :data:`TEXT`.

    Attributes:
        uses_class_evidence: class embeddings need the similarity to closed classes.
        predictor_class: the box predictor, called with the config, the shape of a region's features
            and ``language_dim``.
    """

    uses_class_evidence: ClassVar[bool] = False
    predictor_class: ClassVar[type[FastRCNNOutputLayers]] = RegionWordOutputLayers

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        cls.check_config(cfg)
        return super().from_config(cfg, input_shape)

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Raise a ValueError where the config requests what these heads do not support."""
        check_class_agnostic(cfg)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        class_embeddings: Sequence[ClassEmbeddings] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Compute as Detectron2's ROIHeads, with a further argument.

        Returns:
            in training, the sampled proposals and the losses; else the detections and {}.

        Raises:
            ValueError: there are no ``class_embeddings``.
        """
        del images
        if class_embeddings is None:
            raise ValueError(
                f"class_embeddings is None: {type(self).__name__} classifies regions by text, so "
                "it works within OpenVocabularyRCNN, which passes them"
            )
        if not self.training:
            detections = self._detect_boxes(features, proposals, class_embeddings)
            return self.forward_with_given_boxes(features, detections, class_embeddings), {}
        assert targets is not None, "training requires targets"
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._box_losses(features, proposals, class_embeddings, targets)
        losses |= self._forward_mask(features, proposals)
        losses |= self._forward_keypoint(features, proposals)
        return proposals, losses

    def forward_with_given_boxes(
        self,
        features: dict[str, Tensor],
        instances: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings] | None = None,  # noqa: ARG002 - for class names
    ) -> list[Instances]:
        """Predict the masks of ``pred_boxes``, as Detectron2's StandardROIHeads."""
        return super().forward_with_given_boxes(features, instances)

    @abstractmethod
    def _detect_boxes(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
    ) -> list[Instances]:
        """Classify and refine proposals; per image, the detections after NMS."""

    @abstractmethod
    def _box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """Classification and box losses of proposals that are labelled with ``targets``."""

    def _record_classes(
        self,
        instances: list[Instances],
        regions_per_image: Sequence[Tensor],
        predictions: Predictions | ClosedSetPredictions,
    ) -> None:
        """Set further fields of detections or proposals, for heads with class-specific masks.

        Args:
            instances: per image n_i detections or, in training, labelled proposals.
            regions_per_image: (n_i,) the region of each.
            predictions: for all regions.
        """

    def _pool(self, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        """(R, channels, side, side) features of the proposals."""
        pyramid = [features[name] for name in self.box_in_features]
        return self.box_pooler(pyramid, [instances.proposal_boxes for instances in proposals])

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training:
            instances = [of_image[has_masks(of_image)] for of_image in instances]
        return super()._forward_mask(features, instances)


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyROIHeads(OpenVocabularyROIHeadsBase):
    """``StandardROIHeads`` that classifies regions by text embeddings."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = cls.predictor_class(
            cfg, parts["box_head"].output_shape, language_dim=input_shape[TEXT].channels
        )
        return parts

    def _predict(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
    ) -> Predictions | ClosedSetPredictions:
        region_features = self.box_head(self._pool(features, proposals))
        return self.box_predictor(region_features, proposals, class_embeddings)

    def _detect_boxes(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
    ) -> list[Instances]:
        predictions = self._predict(features, proposals, class_embeddings)
        detections, regions = self.box_predictor.inference(predictions, proposals)
        self._record_classes(detections, regions, predictions)
        return detections

    def _box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
        targets: list[Instances],  # noqa: ARG002 - the proposals are labelled already
    ) -> dict[str, Tensor]:
        """Also replaces the proposals' boxes by the predicted ones if ``train_on_pred_boxes``."""
        predictions = self._predict(features, proposals, class_embeddings)
        losses = self.box_predictor.losses(predictions, proposals)
        self._record_classes(proposals, all_regions(proposals), predictions)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes_per_image = self.box_predictor.predict_boxes_for_gt_classes(
                    predictions, proposals
                )
            for instances, boxes in zip(proposals, boxes_per_image, strict=True):
                instances.proposal_boxes = Boxes(boxes)
        return losses


class CascadeStage(NamedTuple):
    """One stage of a cascade with its outputs.

    Attributes:
        predictor: the stage's box predictor.
        proposals: its inputs, per image.
        predictions: logits and box deltas of the proposals.
        boxes: per image (R_i, 4), the refined proposals.
    """

    predictor: FastRCNNOutputLayers
    proposals: list[Instances]
    predictions: Predictions | ClosedSetPredictions
    boxes: Sequence[Tensor]


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyCascadeROIHeads(OpenVocabularyROIHeadsBase, CascadeROIHeads):
    """``CascadeROIHeads`` that classifies regions by text embeddings; a predictor per stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictors"] = [
            cls.predictor_class(
                cfg,
                box_head.output_shape,
                language_dim=input_shape[TEXT].channels,
                box2box_transform=replaced.box2box_transform,
            )
            for box_head, replaced in zip(parts["box_heads"], parts["box_predictors"], strict=True)
        ]
        return parts

    def _detect_boxes(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
    ) -> list[Instances]:
        """Detections with the boxes of the last stage and the mean probabilities of all stages."""
        stages = self._run_stages(features, proposals, class_embeddings)
        probs_per_stage = [s.predictor.predict_probs(s.predictions, s.proposals) for s in stages]
        mean_probs = [
            sum(probs_of_image) * (1.0 / len(stages))
            for probs_of_image in zip(*probs_per_stage, strict=True)
        ]
        last = stages[-1]
        detections, regions = fast_rcnn_inference(
            last.boxes,
            mean_probs,
            [instances.image_size for instances in proposals],
            last.predictor.test_score_thresh,
            last.predictor.test_nms_thresh,
            last.predictor.test_topk_per_image,
        )
        self._record_classes(detections, regions, last.predictions)
        return detections

    def _box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of each stage, with the suffix ``_stage{k}``."""
        losses: dict[str, Tensor] = {}
        storage = get_event_storage()
        stages = self._run_stages(features, proposals, class_embeddings, targets)
        self._record_classes(proposals, all_regions(proposals), stages[0].predictions)
        for k, stage in enumerate(stages):
            with storage.name_scope(f"stage{k}"):
                stage_losses = stage.predictor.losses(stage.predictions, stage.proposals)
            losses |= {f"{name}_stage{k}": loss for name, loss in stage_losses.items()}
        return losses

    def _run_stages(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings],
        targets: list[Instances] | None = None,
    ) -> list[CascadeStage]:
        """Refine the proposals stage by stage; with ``targets``, label the inputs of each stage."""
        image_sizes = [instances.image_size for instances in proposals]
        stages: list[CascadeStage] = []
        for k, predictor in enumerate(self.box_predictor):
            if stages:
                proposals = self._create_proposals_from_boxes(stages[-1].boxes, image_sizes)
                if targets is not None:
                    proposals = self._match_and_label_boxes(proposals, k, targets)
            pooled = self._pool(features, proposals)
            if self.training:
                # The stages' gradients are averaged in the features they share.
                pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
            predictions = predictor(self.box_head[k](pooled), proposals, class_embeddings)
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append(CascadeStage(predictor, proposals, predictions, boxes))
        return stages


def all_regions(proposals: Sequence[Instances]) -> list[Tensor]:
    """Per image, the indices of all proposals."""
    return [
        torch.arange(len(instances), device=instances.proposal_boxes.device)
        for instances in proposals
    ]


def check_class_agnostic(cfg: CfgNode) -> None:
    """Raise a ValueError where boxes or masks would be predicted per class.

    New classes have no weights of their own.
    """
    switches = {
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
    }
    if cfg.MODEL.MASK_ON:
        switches["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] = (
            cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
        )
    for key, is_agnostic in switches.items():
        if not is_agnostic:
            raise ValueError(
                f"{key} is False, but MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} has no fixed "
                "classes that could have their own boxes or masks: set it to True"
            )
