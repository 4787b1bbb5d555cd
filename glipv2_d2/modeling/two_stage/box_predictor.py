"""Detectron2's box predictor with words where it has a row of weights per class.

R: regions of all images, R_i of image i. L: names that an image is asked. K: columns of classes.
D: width of a name's vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.region_word import MAX_LOGIT, REGION_WORD_SCORE_REGISTRY
from glipv2_d2.modeling.two_stage.asked_names import AskedNames, asked_names
from glipv2_d2.structures import TextFeatures

Predictions = tuple[Tensor, Tensor]
"""Region features (R, C) and class-agnostic box deltas (R, 4)."""


class RegionWordOutputLayers(FastRCNNOutputLayers):
    """Scores regions against the names that their image is asked, and against no thing at all.

    A name's score is a region-word score, the background's a learned row as in Detectron2. Losses,
    boxes and selection are Detectron2's, softmax or sigmoid, with all names of an image side by
    side. The column of a class is its index in the caller's list; classes that an image is not
    asked get so low a logit that they cost no loss and have no probability.

    In training there are ``num_classes`` columns whatever is asked, as the background's label and
    the federated loss need it; at inference as many as the longest list of the batch.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, region_word: nn.Module, **kwargs: Any) -> None:
        """
        Args:
            input_shape: of the features of a region.
            region_word: as of REGION_WORD_SCORE_REGISTRY, for these features.
            kwargs: those of Detectron2's FastRCNNOutputLayers; boxes are class-agnostic.
        """
        super().__init__(input_shape, cls_agnostic_bbox_reg=True, **kwargs)
        self.background = nn.Linear(self.cls_score.in_features, 1)
        nn.init.normal_(self.background.weight, std=0.01)
        nn.init.zeros_(self.background.bias)
        del self.cls_score
        self.region_word = region_word

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, language_dim: int) -> dict[str, Any]:
        settings = cfg.MODEL.GROUNDING
        options = super().from_config(cfg, input_shape)
        del options["cls_agnostic_bbox_reg"]
        visual_dim = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        options["region_word"] = REGION_WORD_SCORE_REGISTRY.get(settings.REGION_WORD)(
            visual_dim=visual_dim,
            language_dim=language_dim,
            prior_prob=settings.PRIOR_PROB,
            log_scale=settings.LOG_SCALE,
        )
        return options

    def forward(self, x: Tensor) -> Predictions:
        """(R, ...) region features -> the same as (R, C), and box deltas.

        Which image a region is of only its proposals tell: scores come with these.
        """
        regions = x.flatten(1)
        return regions, self.bbox_pred(regions)

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Detectron2's; ``gt_classes`` are the caller's classes, or K for the background.

        Raises:
            ValueError: an image is asked more classes than there are columns.
        """
        regions, deltas = predictions
        needed = max(names.num_classes for names in asked_names())
        if needed > self.num_classes:
            raise ValueError(
                f"an image is asked names up to no. {needed} of its list, but "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {self.num_classes}: for training, set it to the "
                "length of the longest list of names"
            )
        logits = self.class_logits(regions, proposals, self.num_classes)
        return super().losses((logits, deltas), proposals)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> Sequence[Tensor]:
        """Per image (R_i, K + 1) probabilities; those of unasked classes are 0."""
        regions, deltas = predictions
        num_classes = max(names.num_classes for names in asked_names())
        logits = self.class_logits(regions, proposals, num_classes)
        return super().predict_probs((full_precision(logits), deltas), proposals)

    def class_logits(
        self, regions: Tensor, proposals: Sequence[Instances], num_classes: int
    ) -> Tensor:
        """(R, K + 1) logits of the caller's classes and, last, of the background.

        Args:
            regions: (R, C) features.
            proposals: per image, the R_i regions that they are of.
            num_classes: K, more than any class that is asked.
        """
        regions_per_image = regions.split([len(instances) for instances in proposals])
        per_image = [
            self._logits_of_image(regions_of_image, names, num_classes)
            for regions_of_image, names in zip(regions_per_image, asked_names(), strict=True)
        ]
        return torch.cat([torch.cat(per_image), self.background(regions)], dim=1)

    def _logits_of_image(self, regions: Tensor, names: AskedNames, num_classes: int) -> Tensor:
        """(R_i, C) features -> (R_i, K)."""
        is_name = torch.ones(1, len(names.classes), dtype=torch.bool, device=regions.device)
        language = TextFeatures(names.vectors[None], is_name)
        ((logits,),) = self.region_word([regions[None]], language)  # (R_i, L)
        columns = torch.tensor(names.classes, dtype=torch.int64, device=regions.device)
        unasked = logits.new_full((len(regions), num_classes), -MAX_LOGIT)
        return unasked.index_copy(1, columns, logits)
