"""NanoDet-g, a detector of COCO's 80 classes, as a backbone with class probabilities and boxes.

The network of RangiLyu/nanodet (Apache-2.0, ``config/legacy_v0.x_configs/nanodet-g.yml``) with
batch norm folded into its 34 convolutions: 3.8 M parameters, trained on COCO 2017 at 416 pixels.
``tools/convert_nanodet.py`` writes the weights.

N: images. H, W: size of the network input in pixels; h, w: of a level in locations.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.dtypes import full_precision

# What the weights were trained with. The channels are B, G, R.
IMAGE_FORMAT = "BGR"
PIXEL_MEAN = (103.53, 116.28, 123.675)
PIXEL_STD = (57.375, 57.12, 58.395)

STRIDES = (8, 16, 32)
FEATURE_CHANNELS = 128
# In the order of the "things" in Detectron2's COCO_CATEGORIES.
NUM_CLASSES = 80
# A distance is the expectation over 0, 1, ..., 10 strides (Generalized Focal Loss, arXiv
# 2006.04388).
NUM_BINS = 11
NEGATIVE_SLOPE = 0.1

# Channels (half of the output's), number of pairs and stride of each block.
BLOCKS = ((32, 1, 1), (64, 2, 2), (128, 2, 2), (256, 3, 2))


@dataclass(frozen=True)
class NanoDetLevel:
    """The parts of one level of :class:`NanoDet`.

    Attributes:
        features: (N, 128, h, w), of the tower.
        class_probs: (N, 80, h, w), 0..1, independent of each other.
        distances: (N, 4, h, w), from the centre of a location to the left, top, right and bottom
            of its box, in pixels of the network input.
    """

    features: Tensor
    class_probs: Tensor
    distances: Tensor

    @staticmethod
    def split(level: Tensor) -> NanoDetLevel:
        """The parts of a level (N, 128 + 80 + 4, h, w), as views."""
        return NanoDetLevel(*level.split((FEATURE_CHANNELS, NUM_CLASSES, 4), dim=1))


def coco_class_names() -> list[str]:
    """The 80 class names, in the order of the class probabilities."""
    return [str(category["name"]) for category in COCO_CATEGORIES if category["isthing"]]


def boxes_of(distances: Tensor, stride: int) -> Tensor:
    """(N, 4, h, w) distances -> (N, h * w, 4) boxes, row by row.

    XYXY with exclusive corners, in pixels of the network input, not clipped. The centre of the
    location (x, y) is ((x + 0.5) * stride, (y + 0.5) * stride).
    """
    # Floats from the start: a graph of ONNX would convert integers to float64.
    arange = functools.partial(torch.arange, dtype=distances.dtype, device=distances.device)
    height, width = map(int, distances.shape[-2:])
    y = (arange(height)[:, None] + 0.5) * stride
    x = (arange(width) + 0.5) * stride
    left, top, right, bottom = distances.unbind(dim=1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1).flatten(1, 2)


class NanoDet(Backbone):
    """Three levels with the features, class probabilities and box distances of NanoDet-g.

    :meth:`NanoDetLevel.split` separates the parts of a level, :func:`boxes_of` decodes the boxes.
    """

    def __init__(self, *, frozen: bool = True, freeze_at: int = 0) -> None:
        """
        Args:
            frozen: train no weights, compute no gradients, and stay in evaluation mode.
            freeze_at: of a backbone that is not frozen, the number of its first stages, of stem and
                blocks, that are not trained.

        Raises:
            ValueError: there are fewer stages.
        """
        super().__init__()
        self.frozen = frozen
        self.stem = LeakyConv2d(3, 32, stride=2)
        self.blocks = nn.ModuleList(
            CrossStageBlock(channels, num_pairs, stride) for channels, num_pairs, stride in BLOCKS
        )
        self.laterals = nn.ModuleList(
            nn.Conv2d(2 * channels, FEATURE_CHANNELS, 1) for channels, _, _ in BLOCKS[1:]
        )
        self.tower = nn.ModuleList(LeakyConv2d(FEATURE_CHANNELS, FEATURE_CHANNELS) for _ in STRIDES)
        self.predictors = nn.ModuleList(
            nn.Conv2d(FEATURE_CHANNELS, NUM_CLASSES + 4 * NUM_BINS, 1) for _ in STRIDES
        )
        self.to(memory_format=torch.channels_last)
        self._out_features = ["p3", "p4", "p5"]
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        channels = FEATURE_CHANNELS + NUM_CLASSES + 4
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)
        stages = (self.stem, *self.blocks)
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but NanoDet has stages 1 to "
                f"{len(stages)}, and 0 freezes none"
            )
        for stage in stages[:freeze_at]:
            stage.requires_grad_(False)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    @property
    def size_divisibility(self) -> int:
        return max(STRIDES)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p<k>": (N, 128 + 80 + 4, H / 2^k, W / 2^k)}.

        Args:
            image: B, G, R, normalised with ``PIXEL_MEAN`` and ``PIXEL_STD``, padded with zeros.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            merged = self.merge(self.bottom_up(image.contiguous(memory_format=torch.channels_last)))
            levels = [
                predict_level(tower(x), predictor, stride)
                for x, tower, predictor, stride in zip(
                    merged, self.tower, self.predictors, STRIDES, strict=True
                )
            ]
        return dict(zip(self._out_features, levels, strict=True))

    def bottom_up(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> features of strides 8, 16 and 32 with 128, 256 and 512 channels."""
        x = F.max_pool2d(self.stem(image), kernel_size=3, stride=2, padding=1)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features[1:]

    def merge(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Path aggregation: 128 channels per level, summed from coarse to fine and back."""
        p3, p4, p5 = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        p4 = p4 + resize(p5, p4)
        p3 = p3 + resize(p4, p3)
        p4 = p4 + resize(p3, p4)
        p5 = p5 + resize(p4, p5)
        return p3, p4, p5


def predict_level(features: Tensor, predictor: nn.Module, stride: int) -> Tensor:
    """(N, 128, h, w) features -> (N, 128 + 80 + 4, h, w): features, probabilities, distances.

    The predictions are float32, and with them the whole level, if the features are narrower.
    """
    class_logits, bin_logits = full_precision(predictor(features)).split(
        (NUM_CLASSES, 4 * NUM_BINS), dim=1
    )
    bin_probs = bin_logits.unflatten(1, (4, NUM_BINS)).softmax(dim=2)
    bins = torch.arange(NUM_BINS, dtype=bin_probs.dtype, device=bin_probs.device)
    distances = torch.einsum("nsbhw,b->nshw", bin_probs, bins * stride)
    return torch.cat([features, class_logits.sigmoid(), distances], dim=1)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the height and width of ``like``, bilinear, without antialiasing as in NanoDet."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class LeakyConv2d(nn.Conv2d):
    """A 3x3 convolution and a leaky ReLU of slope 0.1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(input), NEGATIVE_SLOPE, inplace=True)


class ConcatPair(nn.Module):
    """Two half-wide convolutions in sequence; the output is the second, then the first.

    TinyResBlock of NanoDet with ``res_type="concat"``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = LeakyConv2d(channels, channels // 2)
        self.second = LeakyConv2d(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        first = self.first(x)
        return torch.cat([self.second(first), first], dim=1)


class CrossStageBlock(nn.Module):
    """An entry convolution, pairs and an exit convolution; the output is the exit, then the entry.

    CspBlock of NanoDet, after CSPNet (arXiv 1911.11929).
    """

    def __init__(self, channels: int, num_pairs: int, stride: int) -> None:
        super().__init__()
        self.entry = LeakyConv2d(channels, channels, stride)
        self.pairs = nn.Sequential(*(ConcatPair(channels) for _ in range(num_pairs)))
        self.exit = LeakyConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 2 * C, h / stride, w / stride)."""
        entry = self.entry(x)
        return torch.cat([self.exit(self.pairs(entry)), entry], dim=1)


@BACKBONE_REGISTRY.register()
def build_nanodet_backbone(
    cfg: CfgNode,
    input_shape: ShapeSpec,  # noqa: ARG001 - build_backbone passes it
) -> NanoDet:
    """Build NanoDet-g; its weights are loaded with ``MODEL.WEIGHTS``.

    Raises:
        ValueError: the config normalises images in another way than NanoDet-g's training, or
            ``MODEL.BACKBONE.FREEZE_AT`` exceeds its stages.
    """
    for key, found, expected in (
        ("INPUT.FORMAT", cfg.INPUT.FORMAT, IMAGE_FORMAT),
        ("MODEL.PIXEL_MEAN", list(cfg.MODEL.PIXEL_MEAN), list(PIXEL_MEAN)),
        ("MODEL.PIXEL_STD", list(cfg.MODEL.PIXEL_STD), list(PIXEL_STD)),
    ):
        if found != expected:
            raise ValueError(f"{key} is {found!r}, but build_nanodet_backbone needs {expected!r}")
    return NanoDet(
        frozen=cfg.MODEL.EVIDENCE.FREEZE_DETECTOR, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
