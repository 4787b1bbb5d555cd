"""ROI heads over levels with evidence."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch import Tensor, nn

from glipv2_d2.modeling.heads.roi_heads import GroundingROIHeads, build_entry
from glipv2_mini.modeling.evidence_backbone import FEATURE_CHANNELS, EvidenceLevel
from glipv2_mini.modeling.nanodet import NUM_CLASSES


@ROI_HEADS_REGISTRY.register()
class EvidenceROIHeads(GroundingROIHeads):
    """Masks from the features and class probabilities of the levels (our choice).

    Distances and ImageNet's logits belong to the box of a location, not to the mask of another
    box, and would outweigh the features.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "entry": EvidenceEntry(cfg.MODEL.ROI_MASK_HEAD.CONV_DIM),
        }


class EvidenceEntry(nn.Module):
    """Projects a level to the channels of a region."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = build_entry(FEATURE_CHANNELS + NUM_CLASSES, dim)

    def forward(self, level: Tensor) -> Tensor:
        """(N, 128 + 1096, h, w) -> (N, dim, h, w)."""
        parts = EvidenceLevel.split(level, dim=1)
        projected: Tensor = self.projection(torch.cat([parts.features, parts.class_probs], dim=1))
        return projected
