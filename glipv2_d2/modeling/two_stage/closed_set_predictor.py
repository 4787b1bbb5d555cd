"""Detectron2's box predictor with its own classifier, whose classes are evidence for class names.

The parameters have the names and shapes of Detectron2's, so that files of its model zoo load
unchanged. R: regions of all images, R_i of image i. C: width of a region's features. K: closed
classes. L: class names of an image. N: columns of class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.class_embeddings import ClassEmbeddings, num_columns
from glipv2_d2.modeling.class_evidence import ClassEvidence, evidence_logits
from glipv2_d2.modeling.closed_set import num_closed_classes
from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import ResidualScore
from glipv2_d2.structures import TextFeatures


class ClosedSetPredictions(NamedTuple):
    """What :class:`ClosedSetOutputLayers` predicts for R regions.

    Attributes:
        logits: (R, N + 1), of the class names and the background.
        deltas: (R, N * 4) box deltas, or (R, 4) where boxes are class-agnostic.
        closed_classes: per image (R_i, N) int64, the closed class with the most evidence for each
            name.
    """

    logits: Tensor
    deltas: Tensor
    closed_classes: list[Tensor]


class ClosedSetOutputLayers(FastRCNNOutputLayers, Configurable):
    """Scores class names by the probabilities of Detectron2's classifier and text similarity.

    The logit of a name is that of its evidence (:class:`ClassEvidence`: expected similarity after a
    softmax, best product after a sigmoid) plus a region-word score, which is zero before training.
    Names are independent: the probability is a sigmoid, and training uses binary cross-entropy. The
    box of a name is that of the closed class with the most evidence.

    Before training, a name that is one of the closed class names has the classifier's probability
    of that class, within 1e-5 .. 1 - 1e-6.

    Columns are those of :class:`~glipv2_d2.modeling.two_stage.RegionWordOutputLayers`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_closed_classes: int,
        num_classes: int,
        region_word: RegionWordScore,
        use_sigmoid_ce: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of a region's features.
            num_closed_classes: K.
            num_classes: columns in training.
            region_word: its scores are added to the logits.
            use_sigmoid_ce: the classifier was trained with sigmoids, not with a softmax.
            kwargs: further arguments of Detectron2's FastRCNNOutputLayers.
        """
        super().__init__(
            input_shape, num_classes=num_closed_classes, use_sigmoid_ce=use_sigmoid_ce, **kwargs
        )
        self.num_closed_classes = num_closed_classes
        self.is_exclusive = not use_sigmoid_ce
        self.region_word = region_word
        # Of the class names, which the inherited losses and probabilities are about.
        self.num_classes = num_classes
        self.use_sigmoid_ce = True

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, language_dim: int) -> dict[str, Any]:
        closed_set = cfg.MODEL.CLOSED_SET
        visual_dim = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        return super().from_config(cfg, input_shape) | {
            "num_closed_classes": num_closed_classes(closed_set.CLASS_NAMES, closed_set.DATASET),
            "region_word": ResidualScore(visual_dim=visual_dim, language_dim=language_dim),
        }

    def forward(
        self, x: Tensor, proposals: Sequence[Instances], class_embeddings: Sequence[ClassEmbeddings]
    ) -> ClosedSetPredictions:
        """Predict class logits and box deltas of R regions.

        Args:
            x: (R, ...) region features.
            proposals: per image, the R_i regions of the features.
            class_embeddings: per image, its class names with their similarity.

        Raises:
            ValueError: in training, a class index is ``num_classes`` or more.
        """
        columns = num_columns(
            class_embeddings, num_classes=self.num_classes, training=self.training
        )
        features = x.flatten(1)
        class_logits = full_precision(self.cls_score(features))
        probs = class_logits.softmax(-1) if self.is_exclusive else class_logits.sigmoid()
        # In a tracer __len__ is a tensor, len() a constant.
        sizes = [instances.__len__() for instances in proposals]
        logits, closed_classes = [], []
        for regions, probs_of_image, classes in zip(
            features.split(sizes), probs[:, :-1].split(sizes), class_embeddings, strict=True
        ):
            logits.append(self._name_logits(regions, probs_of_image, classes, columns))
            closed_classes.append(_closed_classes(probs_of_image, classes, columns))
        return ClosedSetPredictions(
            torch.cat([torch.cat(logits), evidence_logits(probs[:, -1:])], dim=1),
            self._select_deltas(self.bbox_pred(features), torch.cat(closed_classes)),
            closed_classes,
        )

    def losses(
        self, predictions: ClosedSetPredictions, proposals: list[Instances]
    ) -> dict[str, Tensor]:
        return super().losses(predictions[:2], proposals)

    def predict_boxes(
        self, predictions: ClosedSetPredictions, proposals: list[Instances]
    ) -> Sequence[Tensor]:
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: ClosedSetPredictions, proposals: list[Instances]
    ) -> Sequence[Tensor]:
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(
        self, predictions: ClosedSetPredictions, proposals: list[Instances]
    ) -> Sequence[Tensor]:
        """Per image (R_i, N + 1) probabilities; 0 in columns without a class name."""
        return super().predict_probs(predictions[:2], proposals)

    def _name_logits(
        self, regions: Tensor, class_probs: Tensor, classes: ClassEmbeddings, columns: int
    ) -> Tensor:
        """(R_i, C) features and (R_i, K) probabilities of an image -> (R_i, N) logits."""
        compute = ClassEvidence.expected if self.is_exclusive else ClassEvidence.best
        evidence = compute(class_probs, classes.closed_set_similarity)
        mask = torch.ones(1, len(classes.classes), dtype=torch.bool, device=regions.device)
        text = TextFeatures(classes.embeddings[None], mask)
        ((scores,),) = self.region_word([regions[None]], text)  # (R_i, L)
        return classes.to_columns(evidence_logits(evidence) + scores, columns)

    def _select_deltas(self, deltas: Tensor, closed_classes: Tensor) -> Tensor:
        """(R, K * 4) -> (R, N * 4), those of ``closed_classes`` (R, N); (R, 4) stay."""
        box_dim = len(self.box2box_transform.weights)
        if deltas.shape[1] == box_dim:
            return deltas
        per_class = deltas.unflatten(1, (self.num_closed_classes, box_dim))
        index = closed_classes[..., None].expand(-1, -1, box_dim)
        return per_class.gather(1, index).flatten(1)


def _closed_classes(class_probs: Tensor, classes: ClassEmbeddings, columns: int) -> Tensor:
    """(R_i, K) probabilities of an image -> (R_i, N) int64, the best class for each name."""
    best = ClassEvidence.best_classes(class_probs, classes.closed_set_similarity)
    index = torch.tensor(classes.classes, dtype=torch.int64, device=best.device)
    return best.new_zeros(len(best), columns).index_copy(1, index, best)
