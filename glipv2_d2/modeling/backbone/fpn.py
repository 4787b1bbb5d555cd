"""Detectron2's FPN with DropBlock on its finer levels and P6, P7 made from P5."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from torch import Tensor

from glipv2_d2.layers.drop_block import DropBlock


class GroundingFPN(FPN):
    """The pyramid p3..p7 of GLIP, as a small change of Detectron2's FPN.

    P6 comes from the *output* P5 and P7 from relu(P6), both by 3x3 convolutions of stride 2; P6
    itself is passed on without relu (GLIP spec 4). In training the merged maps of the levels below
    the coarsest go through DropBlock right before their output convolution; the top-down path
    carries the undropped maps.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        drop_block: DropBlock,
    ) -> None:
        """
        Args:
            bottom_up: the image backbone.
            in_features: its features to use, finest first, each of twice the stride of the last.
            out_channels: channels of every level.
            norm: Detectron2's name of a normalization for the lateral and output convolutions.
            drop_block: applied to the merged maps in training.
        """
        known = bottom_up.output_shape()
        unknown = [name for name in in_features if name not in known]
        if unknown or not in_features:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES is {list(in_features)}, but {type(bottom_up).__name__} "
                f"gives {list(known)}; name some of these, finest first"
            )
        coarsest = f"p{int(math.log2(known[in_features[-1]].stride))}"
        super().__init__(
            bottom_up=bottom_up,
            in_features=in_features,
            out_channels=out_channels,
            norm=norm,
            top_block=LastLevelP6P7(out_channels, out_channels, in_feature=coarsest),
        )
        self.drop_block = drop_block

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) padded to ``size_divisibility`` -> {"p3": (N, C, H/8, W/8), ...}."""
        return self.merge(self.bottom_up(image))

    def merge(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The image backbone's features -> the pyramid."""
        coarsest_lateral, *finer_laterals = self.lateral_convs
        coarsest_output, *finer_outputs = self.output_convs
        *finer_names, coarsest_name = self.in_features

        top_down = coarsest_lateral(features[coarsest_name])
        coarsest_level = coarsest_output(top_down)
        levels = [coarsest_level]
        for name, lateral_conv, output_conv in zip(
            reversed(finer_names), finer_laterals, finer_outputs, strict=True
        ):
            lateral = lateral_conv(features[name])
            # The lateral's own size, not a factor of 2: the same where the image is padded to a
            # multiple of the coarsest stride, and still right where it is not.
            top_down = lateral + F.interpolate(top_down, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, output_conv(self.drop_block(top_down)))
        levels.extend(self.top_block(coarsest_level))
        return dict(zip(self._out_features, levels, strict=True))


def build_grounding_fpn(
    cfg: CfgNode, bottom_up: Backbone, kind: type[GroundingFPN] = GroundingFPN
) -> GroundingFPN:
    """Put the FPN that ``cfg.MODEL.FPN`` describes on an image backbone."""
    fpn = cfg.MODEL.FPN
    return kind(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        drop_block=DropBlock(prob=fpn.DROP_BLOCK_PROB, block_size=fpn.DROP_BLOCK_SIZE),
    )
