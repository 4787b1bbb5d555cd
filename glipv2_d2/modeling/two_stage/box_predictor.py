"""Detectron2's box predictor with text embeddings in place of classifier weights.

R: regions of all images, R_i of image i. C: width of a region's features. L: classes of an image.
K: columns of classes. D: width of a text embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.class_embeddings import ClassEmbeddings, num_columns
from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import build_region_word_score
from glipv2_d2.structures import TextFeatures

Predictions = tuple[Tensor, Tensor]
"""Logits (R, K + 1) of the classes and the background, and class-agnostic box deltas (R, 4)."""


class RegionWordOutputLayers(FastRCNNOutputLayers, Configurable):
    """Classifies regions by region-word scores and regresses class-agnostic boxes.

    Only the class logits differ from Detectron2's: a class is scored by its text embedding, the
    background by a trained row of weights. Losses, boxes and selection are inherited, with softmax
    or sigmoid over all classes of an image. The column of a class is its index; a class without an
    embedding gets a logit of ``-MAX_LOGIT``, that is no probability and no loss.

    In training K is ``num_classes``, which the background's label and the federated loss require.
    At inference it is what the class indices of the batch need.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, region_word: RegionWordScore, **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: shape of a region's features.
            region_word: a score of REGION_WORD_SCORE_REGISTRY for features of this shape.
            kwargs: arguments of Detectron2's FastRCNNOutputLayers; boxes are class-agnostic.
        """
        super().__init__(input_shape, cls_agnostic_bbox_reg=True, **kwargs)
        self.background = nn.Linear(self.cls_score.in_features, 1)
        nn.init.normal_(self.background.weight, std=0.01)
        nn.init.zeros_(self.background.bias)
        del self.cls_score
        self.region_word = region_word

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, language_dim: int) -> dict[str, Any]:
        options = super().from_config(cfg, input_shape)
        del options["cls_agnostic_bbox_reg"]
        visual_dim = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        options["region_word"] = build_region_word_score(cfg, visual_dim, language_dim)
        return options

    def forward(
        self, x: Tensor, proposals: Sequence[Instances], class_embeddings: Sequence[ClassEmbeddings]
    ) -> Predictions:
        """Predict class logits and box deltas of R regions.

        Args:
            x: (R, ...) region features.
            proposals: per image, the R_i regions of the features.
            class_embeddings: per image, its classes.

        Raises:
            ValueError: in training, a class index is ``num_classes`` or more.
        """
        num_classes = num_columns(
            class_embeddings, num_classes=self.num_classes, training=self.training
        )
        features = x.flatten(1)
        # In a tracer __len__ is a tensor, len() a constant.
        regions_per_image = features.split([instances.__len__() for instances in proposals])
        logits = [
            self._class_logits(regions, classes, num_classes)
            for regions, classes in zip(regions_per_image, class_embeddings, strict=True)
        ]
        logits_and_background = torch.cat([torch.cat(logits), self.background(features)], dim=1)
        return logits_and_background, self.bbox_pred(features)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> Sequence[Tensor]:
        """Per image (R_i, K + 1) probabilities, at least float32; 0 without an embedding."""
        logits, deltas = predictions
        return super().predict_probs((full_precision(logits), deltas), proposals)

    def _class_logits(self, regions: Tensor, classes: ClassEmbeddings, num_classes: int) -> Tensor:
        """(R_i, C) features of an image's regions -> (R_i, K) logits."""
        mask = torch.ones(1, len(classes.classes), dtype=torch.bool, device=regions.device)
        text = TextFeatures(classes.embeddings[None], mask)
        ((scores,),) = self.region_word([regions[None]], text)  # (R_i, L)
        return classes.to_columns(scores, num_classes)
