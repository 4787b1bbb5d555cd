"""Mask head: from the pooled features of a box to a mask of its label.

K: boxes. M: channels of a region. R: side of a region, S = 2 R: of its mask. D: width of the text
features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.base import TEXT

REGION = "region"
"""The key of ``input_shape`` under which a mask head finds the shape of a pooled region."""


@ROI_MASK_HEAD_REGISTRY.register()
class HourglassMaskHead(nn.Module, Configurable):
    """Hourglasses, a deconvolution, and dot products of every pixel with the text of its box.

    The product is that of the region-word score: text is L2-normalised, halved and projected, a
    learned temperature divides, every token has a bias (GLIPv2 paper, section 3.1, and the released
    code's VLMaskRCNNC4Predictor). There each token has a mask and the logits of a label's tokens
    are averaged; as the product is linear, we take it once, with the mean of the tokens.

    Built by Detectron2's ROI_MASK_HEAD_REGISTRY with the shapes of a region and, under "text", of
    the text features.
    """

    @configurable
    def __init__(self, *, dim: int, language_dim: int, num_hourglasses: int, norm: str) -> None:
        """
        Args:
            dim: M.
            language_dim: D.
            num_hourglasses: number of stacked hourglasses; four in the released code.
            norm: Detectron2's name of the normalization of the convolutions; "": none.
        """
        super().__init__()
        self.hourglasses = nn.Sequential(*(Hourglass(dim, norm) for _ in range(num_hourglasses)))
        self.deconv = ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.projection = nn.Linear(language_dim, dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_language = nn.Parameter(torch.zeros(language_dim))
        weight_init.c2_msra_fill(self.deconv)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        settings = cfg.MODEL.ROI_MASK_HEAD
        return {
            "dim": input_shape[REGION].channels,
            "language_dim": input_shape[TEXT].channels,
            "num_hourglasses": settings.NUM_HOURGLASSES,
            "norm": settings.NORM,
        }

    def forward(self, regions: Tensor, text: Tensor) -> Tensor:
        """Mask logits, in float32 also under autocast.

        Args:
            regions: (K, M, R, R) features of the boxes.
            text: (K, D), for each box the mean of the L2-normalised tokens of its label.

        Returns:
            (K, S, S), on a grid over each box.
        """
        pixels = F.relu(self.deconv(self.hourglasses(regions)))  # (K, M, S, S)
        with torch.autocast(pixels.device.type, enabled=False):
            text = full_precision(text)
            projected = self.projection(text / 2) / self.log_scale.exp()  # (K, M)
            bias = (text @ self.bias_language[:, None]).squeeze(-1)
            products = torch.einsum("kmhw,km->khw", full_precision(pixels), projected)
            return products + bias[:, None, None]


class Hourglass(nn.Module):
    """A bottleneck plus three bottlenecks at half the resolution (depth 1, the released code's).

    (K, M, R, R) -> the same shape, non-negative.
    """

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.same = Bottleneck(dim, norm)
        self.coarser = nn.Sequential(*(Bottleneck(dim, norm) for _ in range(3)))

    def forward(self, regions: Tensor) -> Tensor:
        coarser = self.coarser(F.max_pool2d(regions, kernel_size=2))
        # The region's own size, not a factor of 2: an odd side loses its last row in the pooling.
        upsampled = F.interpolate(coarser, size=regions.shape[-2:], mode="nearest")
        return F.relu(self.same(regions) + upsampled)


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions at half the width, with pre-activation."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        narrow = dim // 2
        widen = _conv(narrow, dim, kernel_size=1, norm=norm)
        # Starts as the identity (our choice): else sixteen residuals in a row would let the
        # features grow a hundredfold.
        nn.init.zeros_(widen.norm.weight if norm else widen.weight)
        self.layers = nn.Sequential(
            nn.ReLU(),
            _conv(dim, narrow, kernel_size=1, norm=norm, activation=F.relu),
            _conv(narrow, narrow, kernel_size=3, norm=norm, activation=F.relu),
            widen,
        )

    def forward(self, regions: Tensor) -> Tensor:
        return regions + self.layers(regions)


def _conv(in_dim: int, out_dim: int, *, kernel_size: int, norm: str, **kwargs: Any) -> Conv2d:
    conv = Conv2d(
        in_dim,
        out_dim,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_dim),
        **kwargs,
    )
    weight_init.c2_msra_fill(conv)
    return conv
