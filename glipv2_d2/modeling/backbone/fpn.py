"""Detectron2's FPN with DropBlock on its finer levels and P6, P7 computed from P5."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from torch import Tensor, nn

from glipv2_d2.config import with_config_keys
from glipv2_d2.layers.drop_block import DropBlock
from glipv2_d2.layers.tracing import is_tracing

_CONFIG_KEYS = {
    "in_features": "MODEL.FPN.IN_FEATURES",
    "prob": "MODEL.FPN.DROP_BLOCK_PROB",
    "block_size": "MODEL.FPN.DROP_BLOCK_SIZE",
}


class _PaddedP6P7(LastLevelP6P7):
    """Detectron2's P6 and P7, whose gradients are also right for maps one pixel wide.

    For those, oneDNN's bf16 gradient of the weights of a padded convolution of stride 2 contains
    uninitialized memory on CPUs with AVX-512 (torch 2.15). Padded beforehand, it does not.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> P6 and P7."""
        p6 = _downsample(c5, self.p6)
        return [p6, _downsample(F.relu(p6), self.p7)]


def _downsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply ``conv``, which pads by one pixel; a map one pixel wide is padded beforehand."""
    if is_tracing() or not torch.is_grad_enabled() or x.shape[-1] > 1:
        return conv(x)
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias, conv.stride)


class GroundingFPN(FPN):
    """Computes the pyramid p3..p7 of GLIP (glip_reference.md 4).

    P6 is computed from the *output* P5 and P7 from relu(P6), both by 3x3 convolutions of stride 2;
    P6 itself is returned without relu. In training, DropBlock is applied to the merged maps below
    the coarsest level, right before their output convolution. The top-down path uses the maps
    without DropBlock.
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
            in_features: names of its features to use, finest first, each of twice the stride of
                the one before.
            out_channels: channels of every level.
            norm: Detectron2's name of the normalization after lateral and output convolutions.
            drop_block: applied to the merged maps in training.

        Raises:
            ValueError: ``in_features`` is empty or names an unknown feature.
        """
        known = bottom_up.output_shape()
        unknown = [name for name in in_features if name not in known]
        if unknown or not in_features:
            raise ValueError(
                f"in_features is {list(in_features)}, but {type(bottom_up).__name__} has the "
                f"features {list(known)}; name some of these, finest first"
            )
        coarsest = f"p{int(math.log2(known[in_features[-1]].stride))}"
        super().__init__(
            bottom_up=bottom_up,
            in_features=in_features,
            out_channels=out_channels,
            norm=norm,
            top_block=_PaddedP6P7(out_channels, out_channels, in_feature=coarsest),
        )
        self.drop_block = drop_block

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) padded to ``size_divisibility`` -> {"p3": (N, C, H/8, W/8), ...}."""
        return self.merge(self.bottom_up(image))

    def merge(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the pyramid from the features of the image backbone."""
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
            # To the size of the lateral, not by a factor of 2: this also works if the image is not
            # padded to a multiple of the coarsest stride.
            top_down = lateral + F.interpolate(top_down, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, output_conv(self.drop_block(top_down)))
        levels.extend(self.top_block(coarsest_level))
        return dict(zip(self._out_features, levels, strict=True))


def build_grounding_fpn(
    cfg: CfgNode, bottom_up: Backbone, kind: type[GroundingFPN] = GroundingFPN
) -> GroundingFPN:
    """Build the FPN of ``cfg.MODEL.FPN`` on top of an image backbone.

    Args:
        bottom_up: the image backbone.
        kind: the class to build.
    """
    fpn = cfg.MODEL.FPN
    try:
        return kind(
            bottom_up=bottom_up,
            in_features=fpn.IN_FEATURES,
            out_channels=fpn.OUT_CHANNELS,
            norm=fpn.NORM,
            drop_block=DropBlock(prob=fpn.DROP_BLOCK_PROB, block_size=fpn.DROP_BLOCK_SIZE),
        )
    except ValueError as error:
        raise with_config_keys(error, _CONFIG_KEYS) from error
