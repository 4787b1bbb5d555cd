"""A head that fuses nothing: detection from the maps of the backbone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from glipv2_d2.modeling.fusion.base import FusedHead
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.structures import TextFeatures


@FUSED_HEAD_REGISTRY.register()
class UnfusedHead(FusedHead):
    """Maps and text as they are; they meet in the region-word scores only (our choice).

    A fine-tuning on boxes takes a third of the time that it takes with fusion. Answers and captions
    need another head.
    """

    # The weights of a head that fuses.
    checkpoint_optional = ("",)

    def __init__(
        self,
        cfg: CfgNode,  # noqa: ARG002 - the registry's call
        input_shape: dict[str, ShapeSpec],  # noqa: ARG002
        language_dim: int,  # noqa: ARG002
    ) -> None:
        super().__init__()

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """As :meth:`FusedHead.forward`: the inputs."""
        return features, text
