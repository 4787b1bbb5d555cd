"""Detectron2's ROI heads with their own classifiers, for any class names.

K: closed classes. N: columns of class names. R_i: regions of image i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, select_foreground_proposals
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings
from glipv2_d2.modeling.closed_set import num_closed_classes
from glipv2_d2.modeling.heads.roi_heads import has_masks
from glipv2_d2.modeling.two_stage.box_predictor import Predictions
from glipv2_d2.modeling.two_stage.closed_set_predictor import (
    ClosedSetOutputLayers,
    ClosedSetPredictions,
)
from glipv2_d2.modeling.two_stage.roi_heads import (
    OpenVocabularyCascadeROIHeads,
    OpenVocabularyROIHeads,
    OpenVocabularyROIHeadsBase,
)

CLOSED_CLASSES = "closed_classes"
"""A field of Instances within the ROI heads: (n,) the closed class whose mask a region takes."""


class ClosedSetROIHeadsBase(OpenVocabularyROIHeadsBase):
    """Base of the ROI heads with a closed-set classifier; boxes and masks may be class-specific.

    The mask of a name is that of the closed class with the most evidence in its region.
    """

    uses_class_evidence: ClassVar[bool] = True
    predictor_class: ClassVar[type[FastRCNNOutputLayers]] = ClosedSetOutputLayers

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Class-specific boxes and masks are those of the closed classes."""

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        cfg, closed_set = cfg.clone(), cfg.MODEL.CLOSED_SET
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_closed_classes(
            closed_set.CLASS_NAMES, closed_set.DATASET
        )
        return super()._init_mask_head(cfg, input_shape)

    def forward_with_given_boxes(
        self,
        features: dict[str, Tensor],
        instances: list[Instances],
        class_embeddings: Sequence[ClassEmbeddings] | None = None,
    ) -> list[Instances]:
        """Predict masks; given boxes take those of the closed class most similar to their name.

        Raises:
            ValueError: given boxes have no ``class_embeddings``.
        """
        if not all(of_image.has(CLOSED_CLASSES) for of_image in instances):
            if class_embeddings is None:
                raise ValueError(
                    f"class_embeddings is None: {type(self).__name__} selects masks by class name"
                )
            for of_image, classes in zip(instances, class_embeddings, strict=True):
                most_similar = classes.closed_set_similarity.argmax(dim=1)
                column_classes = most_similar.new_zeros(classes.num_classes)
                column_classes[list(classes.classes)] = most_similar
                of_image.set(CLOSED_CLASSES, column_classes[of_image.pred_classes])
        instances = super().forward_with_given_boxes(features, instances)
        for of_image in instances:
            of_image.remove(CLOSED_CLASSES)
        return instances

    def _record_classes(
        self,
        instances: list[Instances],
        regions_per_image: Sequence[Tensor],
        predictions: Predictions | ClosedSetPredictions,
    ) -> None:
        assert isinstance(predictions, ClosedSetPredictions), type(predictions)
        for of_image, regions, closed in zip(
            instances, regions_per_image, predictions.closed_classes, strict=True
        ):
            names = of_image.gt_classes if self.training else of_image.pred_classes
            # The background has no column; it has no mask either.
            names = names.clamp(max=max(closed.shape[1] - 1, 0))
            of_image.set(CLOSED_CLASSES, closed[regions].gather(1, names[:, None]).squeeze(1))

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances = [of_image[has_masks(of_image)] for of_image in instances]
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        pooled = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        # The mask head selects masks by these fields.
        field = "gt_classes" if self.training else "pred_classes"
        closed = [Instances(x.image_size, **x.get_fields()) for x in instances]
        for of_image in closed:
            of_image.set(field, of_image.get(CLOSED_CLASSES))
        output = self.mask_head(pooled, closed)
        if self.training:
            return output
        for of_image, with_masks in zip(instances, output, strict=True):
            of_image.pred_masks = with_masks.pred_masks
        return instances


@ROI_HEADS_REGISTRY.register()
class ClosedSetROIHeads(ClosedSetROIHeadsBase, OpenVocabularyROIHeads):
    """``StandardROIHeads`` with the classifier of ``MODEL.CLOSED_SET``, for any class names."""


@ROI_HEADS_REGISTRY.register()
class ClosedSetCascadeROIHeads(ClosedSetROIHeadsBase, OpenVocabularyCascadeROIHeads):
    """``CascadeROIHeads`` with the classifiers of ``MODEL.CLOSED_SET``, for any class names."""
