"""Detectron2's ROI heads, with box predictors that read words."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE
from glipv2_d2.modeling.heads.roi_heads import which_have_masks
from glipv2_d2.modeling.two_stage.box_predictor import RegionWordOutputLayers


class AskedROIHeads(StandardROIHeads):
    """What the ROI heads with words have in common.

    They are built with the pyramid's shapes plus ``ShapeSpec(channels=D)`` under "language".
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_class_agnostic(cfg)
        return super().from_config(cfg, input_shape)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training:
            instances = [of_image[which_have_masks(of_image)] for of_image in instances]
        return super()._forward_mask(features, instances)


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyROIHeads(AskedROIHeads):
    """``StandardROIHeads`` whose classes are the names that an image is asked."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = RegionWordOutputLayers(
            cfg, parts["box_head"].output_shape, language_dim=input_shape[LANGUAGE].channels
        )
        return parts


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyCascadeROIHeads(AskedROIHeads, CascadeROIHeads):
    """``CascadeROIHeads`` whose classes are the names that an image is asked.

    Every stage has its own box predictor.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictors"] = [
            RegionWordOutputLayers(
                cfg,
                box_head.output_shape,
                language_dim=input_shape[LANGUAGE].channels,
                box2box_transform=replaced.box2box_transform,
            )
            for box_head, replaced in zip(parts["box_heads"], parts["box_predictors"], strict=True)
        ]
        return parts


def check_class_agnostic(cfg: CfgNode) -> None:
    """Raise a ValueError where boxes or masks would be predicted by class.

    A class that is asked for the first time has no weights of its own.
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
