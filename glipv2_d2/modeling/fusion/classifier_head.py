"""The fused heads over a pyramid that carries words in its last channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from glipv2_d2.modeling.fusion.bi_attention import EvidentBiAttention
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.fused_head import FusedDynamicHead, ImageFusedDynamicHead
from glipv2_d2.structures import TextFeatures


class _ClassifierWordsPassBy:
    """Fuses the visual channels; the classifier's words pass by for the region-word score.

    For pyramids whose last D channels are in the space of the D wide words
    (:class:`~glipv2_d2.modeling.backbone.classifier_backbone.ClassifierFPN`); mixed into a fused
    head. Our choice.
    """

    visual_dim: int

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
        self, features: dict[str, Tensor], language: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """As :meth:`BlockHead.forward`, with the last channels of every level as they came."""
        fused, language = super().forward(self.visual(features), language)  # type: ignore[misc]
        joined = {
            name: torch.cat([fused[name], level[:, self.visual_dim :]], dim=1)
            for name, level in features.items()
        }
        return joined, language

    def visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps that image and words read: the first C channels."""
        return {name: level[:, : self.visual_dim] for name, level in features.items()}


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedHead(_ClassifierWordsPassBy, ImageFusedDynamicHead):
    """The image reads the words; the words stay as they came."""


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedDynamicHead(_ClassifierWordsPassBy, FusedDynamicHead):
    """Image and words read each other, for losses and tasks that read the fused words."""

    def words(
        self, features: dict[str, Tensor], language: TextFeatures, image_of: Sequence[int]
    ) -> TextFeatures:
        return super().words(self.visual(features), language, image_of)

    def look(self, features: dict[str, Tensor]) -> list[Tensor]:
        return super().look(self.visual(features))


@FUSED_HEAD_REGISTRY.register()
class ClassifierReadingDynamicHead(ClassifierFusedDynamicHead):
    """Image and words also read what the classifier sees, and where; words, whether it is there.

    Words that are to be said, and words that tell places apart ("the left apple"), need the first
    two. They are brought to C channels and added to the maps, from zeros to start with: then the
    weights of a :class:`ClassifierFusedHead` find the same boxes here, and training can go on from
    them. For the last see :class:`EvidentBiAttention`.
    """

    attention_type = EvidentBiAttention

    @configurable
    def __init__(self, *, visual_dim: int, language_dim: int, **kwargs: Any) -> None:
        """Arguments as of :class:`FusedDynamicHead`."""
        super().__init__(visual_dim=visual_dim, language_dim=language_dim, **kwargs)
        # The classifier's words, x and y.
        self.seen = nn.Conv2d(language_dim + 2, visual_dim, 1)
        for parameter in self.seen.parameters():
            nn.init.zeros_(parameter)

    @property
    def checkpoint_optional(self) -> tuple[str, ...]:
        """Weights that those of a ClassifierFusedHead lack."""
        return (
            "seen.",
            *(
                f"blocks.{i}.{name}"
                for i in range(len(self.blocks))
                for name in (
                    "language_layer.",
                    "fusion.gamma_language",
                    "fusion.attention.visual_value.",
                    "fusion.attention.language_out.",
                    "fusion.attention.evidence.",
                )
            ),
        )

    def visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: level[:, : self.visual_dim]
            + self.seen(torch.cat([level[:, self.visual_dim :], places(level)], dim=1))
            for name, level in features.items()
        }


def places(level: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 2, H, W), x and y of every position's centre, from -1 to 1.

    >>> places(torch.zeros(1, 5, 1, 4))[0, :, 0].tolist()
    [[-0.75, -0.25, 0.25, 0.75], [0.0, 0.0, 0.0, 0.0]]
    """
    height, width = level.shape[-2:]
    x = (torch.arange(width, device=level.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=level.device) * 2 + 1) / height - 1
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([x, y]).to(level.dtype).expand(len(level), -1, -1, -1)
