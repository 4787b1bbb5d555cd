"""The fused heads over a pyramid that carries words in its last channels."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.fused_head import FusedDynamicHead, ImageFusedDynamicHead
from glipv2_d2.structures import LanguageFeatures


class _ClassifierWordsPassBy:
    """Fuses the visual channels; the classifier's words pass by for the region-word score.

    For pyramids whose last D channels are in the space of the D wide words
    (:class:`~glipv2_d2.modeling.backbone.classifier_backbone.ClassifierFPN`); mixed into a fused
    head. Our choice.
    """

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
    ) -> dict[str, Any]:
        visual_shape = {}
        for name, shape in input_shape.items():
            channels = shape.channels - language_width
            if channels <= 0:
                raise ValueError(
                    f"level {name} has {shape.channels} channels, no more than the {language_width}"
                    f" of a word: MODEL.FUSED_HEAD.NAME {cls.__name__} needs "
                    "MODEL.BACKBONE.NAME build_timm_classifier_fpn_backbone"
                )
            visual_shape[name] = ShapeSpec(channels=channels, stride=shape.stride)
        return super().from_config(cfg, visual_shape, language_width)  # type: ignore[misc]

    def forward(
        self, features: dict[str, Tensor], language: LanguageFeatures
    ) -> tuple[dict[str, Tensor], LanguageFeatures]:
        """As :meth:`BlockHead.forward`, with the last channels of every level as they came."""
        width = language.hidden.shape[-1]
        visual = {name: level[:, :-width] for name, level in features.items()}
        fused, language = super().forward(visual, language)  # type: ignore[misc]
        joined = {
            name: torch.cat([fused[name], features[name][:, -width:]], dim=1) for name in features
        }
        return joined, language


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedHead(_ClassifierWordsPassBy, ImageFusedDynamicHead):
    """The image reads the words; the words stay as they came."""


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedDynamicHead(_ClassifierWordsPassBy, FusedDynamicHead):
    """Image and words read each other, for losses and tasks that read the fused words."""

    def words(self, features: dict[str, Tensor], language: LanguageFeatures) -> LanguageFeatures:
        return super().words(self._visual(features), language)

    def look(self, features: dict[str, Tensor]) -> list[Tensor]:
        return super().look(self._visual(features))

    def _visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: level[:, : self.visual_dim] for name, level in features.items()}
