"""Fused heads over a pyramid that carries classifier embeddings in its last channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from glipv2_d2.config import configurable
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.fused_head import FusedDynamicHead
from glipv2_d2.structures import ImageFeatures, TextFeatures
from glipv2_mini.modeling.image_fused_head import ImageFusedDynamicHead, LogSumExpBiAttention


class _ClassifierEmbeddingsMixin:
    """Fuses the visual channels, and passes the classifier embeddings on unchanged (our choice).

    For pyramids whose last D channels are in the space of the text features
    (:class:`~glipv2_mini.modeling.classifier_backbone.ClassifierFPN`).
    """

    visual_dim: int

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        visual_shape = {}
        for name, shape in input_shape.items():
            channels = shape.channels - language_dim
            if channels <= 0:
                raise ValueError(
                    f"level {name} has {shape.channels} channels, not more than the {language_dim} "
                    f"of a text feature: MODEL.FUSED_HEAD.NAME {cls.__name__} needs "
                    "MODEL.BACKBONE.NAME build_timm_classifier_fpn_backbone"
                )
            visual_shape[name] = ShapeSpec(channels=channels, stride=shape.stride)
        return super().from_config(cfg, visual_shape, language_dim)  # type: ignore[misc]

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """As :meth:`FusedHead.forward`; the last channels of every level do not change."""
        fused, text = super().forward(self.visual(features), text)  # type: ignore[misc]
        joined = {
            name: torch.cat([fused[name], level[:, self.visual_dim :]], dim=1)
            for name, level in features.items()
        }
        return joined, text

    def visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps to fuse: the first C channels."""
        return {name: level[:, : self.visual_dim] for name, level in features.items()}


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedHead(_ClassifierEmbeddingsMixin, ImageFusedDynamicHead):
    """Positions attend to the text; the text does not change."""


@FUSED_HEAD_REGISTRY.register()
class ClassifierFusedDynamicHead(_ClassifierEmbeddingsMixin, FusedDynamicHead):
    """Bi-directional fusion, for losses and tasks that use the fused text."""

    def fuse_text(self, features: ImageFeatures, text: TextFeatures) -> TextFeatures:
        return super().fuse_text(replace(features, levels=self.visual(features.levels)), text)

    def project_visual(self, features: dict[str, Tensor]) -> list[Tensor]:
        return super().project_visual(self.visual(features))


@FUSED_HEAD_REGISTRY.register()
class PositionalClassifierFusedHead(ClassifierFusedDynamicHead):
    """Bi-directional fusion of maps with the classifier embeddings and positions added.

    Answers, captions and spatial phrases ("the left apple") need both. They are projected to C
    channels and added to the maps; the projection is initialised to zero, so that the weights of a
    :class:`ClassifierFusedHead` give the same boxes. The attention is a
    :class:`LogSumExpBiAttention`.
    """

    @configurable
    def __init__(self, *, visual_dim: int, language_dim: int, **kwargs: Any) -> None:
        """Arguments as in :class:`FusedDynamicHead`."""
        super().__init__(
            visual_dim=visual_dim,
            language_dim=language_dim,
            attention_class=LogSumExpBiAttention,
            **kwargs,
        )
        # The classifier embedding, x and y.
        self.input_projection = nn.Conv2d(language_dim + 2, visual_dim, 1)
        for parameter in self.input_projection.parameters():
            nn.init.zeros_(parameter)
        # Weights that those of a ClassifierFusedHead lack.
        self.checkpoint_optional = (
            "input_projection.",
            *(
                f"blocks.{i}.{name}"
                for i in range(len(self.blocks))
                for name in (
                    "language_layer.",
                    "fusion.gamma_language",
                    "fusion.attention.visual_value.",
                    "fusion.attention.language_out.",
                    "fusion.attention.logsumexp_projection.",
                )
            ),
        )

    def visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: level[:, : self.visual_dim]
            + self.input_projection(
                torch.cat([level[:, self.visual_dim :], relative_positions(level)], dim=1)
            )
            for name, level in features.items()
        }


def relative_positions(level: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 2, H, W), x and y of every location's centre, from -1 to 1.

    >>> relative_positions(torch.zeros(1, 5, 1, 4))[0, :, 0].tolist()
    [[-0.75, -0.25, 0.25, 0.75], [0.0, 0.0, 0.0, 0.0]]
    """
    height, width = level.shape[-2:]
    x = (torch.arange(width, device=level.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=level.device) * 2 + 1) / height - 1
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([x, y]).to(level.dtype).expand(len(level), -1, -1, -1)
