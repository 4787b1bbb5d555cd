"""The fused head over levels with evidence (:class:`EvidenceLevel`)."""

from __future__ import annotations

import functools
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
from glipv2_mini.modeling.evidence_backbone import (
    EVIDENCE_CHANNELS,
    FEATURE_CHANNELS,
    EvidenceLevel,
)
from glipv2_mini.modeling.logsumexp_attention import LogSumExpBiAttention
from glipv2_mini.modeling.nanodet import NUM_CLASSES


@FUSED_HEAD_REGISTRY.register()
class EvidenceFusedHead(FusedDynamicHead):
    """Fuses the features of the levels, and passes the evidence on unchanged (our choice).

    The class probabilities and the position of a location are projected and added to its features:
    answers, captions and phrases such as "the left apple" need both. The attention is a
    :class:`LogSumExpBiAttention`.
    """

    @configurable
    def __init__(self, *, visual_dim: int, **kwargs: Any) -> None:
        """Arguments as in :class:`FusedDynamicHead`."""
        super().__init__(visual_dim=visual_dim, attention_class=LogSumExpBiAttention, **kwargs)
        # The class probabilities, x and y.
        self.input_projection = nn.Conv2d(NUM_CLASSES + 2, visual_dim, 1)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        expected = FEATURE_CHANNELS + EVIDENCE_CHANNELS
        for name, shape in input_shape.items():
            if shape.channels != expected:
                raise ValueError(
                    f"level {name} has {shape.channels} channels, not {expected}: "
                    f"MODEL.FUSED_HEAD.NAME {cls.__name__} needs MODEL.BACKBONE.NAME "
                    "build_evidence_backbone"
                )
        visual_shape = {
            name: ShapeSpec(channels=FEATURE_CHANNELS, stride=shape.stride)
            for name, shape in input_shape.items()
        }
        return super().from_config(cfg, visual_shape, language_dim)

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """As :meth:`FusedHead.forward`; the evidence of every level does not change."""
        fused, text = super().forward(self.visual(features), text)
        joined = {
            name: torch.cat([fused[name], level[:, FEATURE_CHANNELS:]], dim=1)
            for name, level in features.items()
        }
        return joined, text

    def fuse_text(self, features: ImageFeatures, text: TextFeatures) -> TextFeatures:
        return super().fuse_text(replace(features, levels=self.visual(features.levels)), text)

    def project_visual(self, features: dict[str, Tensor]) -> list[Tensor]:
        return super().project_visual(self.visual(features))

    def visual(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps to fuse."""
        visual = {}
        for name, level in features.items():
            parts = EvidenceLevel.split(level, dim=1)
            inputs = torch.cat([parts.class_probs, relative_positions(level)], dim=1)
            visual[name] = parts.features + self.input_projection(inputs)
        return visual


def relative_positions(level: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 2, H, W), x and y of every location's centre, from -1 to 1.

    >>> relative_positions(torch.zeros(1, 5, 1, 4))[0, :, 0].tolist()
    [[-0.75, -0.25, 0.25, 0.75], [0.0, 0.0, 0.0, 0.0]]
    """
    arange = functools.partial(torch.arange, dtype=torch.float32, device=level.device)
    height, width = map(int, level.shape[-2:])
    x = (arange(width) * 2 + 1) / width - 1
    y = (arange(height) * 2 + 1) / height - 1
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([x, y]).to(level.dtype).expand(len(level), -1, -1, -1)
