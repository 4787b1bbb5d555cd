"""A frozen classifier of MobileNet's blocks in 8-bit integers, for CPUs.

oneDNN's integer convolutions take about half the time of float32 ones. The ranges of the integers,
and the mean errors of rounded weights, follow from the batch norms, so that no images are needed to
calibrate them (data-free quantization with bias correction, Nagel et al. 2019,
https://arxiv.org/abs/1906.04721; the number of deviations is our choice).

C: channels. h, w: of a map in locations.
"""

from __future__ import annotations

import copy
import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Activations have 7 bits: the AVX2 instructions for products of 8-bit integers add two of them in
# 16 bits, which activations of 8 bits overflow.
MAX_LEVEL = 127
RELU6_RANGE = (0.0, 6.0)
# Of a channel around its mean; wider ranges have coarser levels.
RANGE_DEVIATIONS = 4.0


class Int8Conv2d(nn.Module):
    """A dense or depthwise convolution in integers, of the map of another one or of float32.

    Weights have 8 bits, with a scale per output channel; sums have 32 bits. The padding of
    ``Conv2dSame`` (TensorFlow's: more at the end) is kept.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        input_range: tuple[float, float],
        input_mean: Tensor,
        has_relu6: bool,
    ) -> None:
        """
        Args:
            conv: with its batch norm folded.
            input_range: the values that the levels 0 and 127 of the input stand for; others are
                clamped.
            input_mean: (C,), expected of each channel. The bias makes up for what the rounded
                weights add to it.
            has_relu6: return levels of ReLU6's range; else float32.
        """
        super().__init__()
        weight = conv.weight.detach()
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / MAX_LEVEL
        levels = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        error = (levels * scale.view(-1, 1, 1, 1) - weight).sum(dim=(2, 3))
        added = error[:, 0] * input_mean if conv.groups > 1 else error @ input_mean
        bias = -added if conv.bias is None else conv.bias.detach() - added
        self.register_buffer("weight", levels, persistent=False)
        self.register_buffer("weight_scale", scale, persistent=False)
        zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.register_buffer("weight_zero_point", zeros, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        low, high = input_range
        self.scale = (high - low) / MAX_LEVEL
        self.zero_point = round(-low / self.scale)
        self.has_relu6 = has_relu6
        self.kernel_size, self.stride = conv.kernel_size, list(conv.stride)
        self.padding: list[int] | None = None
        if type(conv) is nn.Conv2d:
            self.padding = [int(size) for size in conv.padding]
        self.groups = conv.groups
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) floats, or uint8 levels of the input's range -> float32, or uint8 levels."""
        if x.dtype != torch.uint8:
            # Truncated to integers, so that 0.5 rounds.
            offset = torch.tensor(self.zero_point + 0.5)
            levels = torch.add(offset, x.float(), alpha=1 / self.scale).clamp_(0, MAX_LEVEL)
            x = levels.to(torch.uint8)
        padding = self.padding
        if padding is None:
            x, padding = self._pad_same(x), [0, 0]
        if self._packed is None:
            self._packed = _onednn().qconv_prepack(
                *(self.weight, self.weight_scale, self.scale, self.zero_point),
                *(self.stride, padding, [1, 1], self.groups, None),
            )
        activation = ("hardtanh", list(RELU6_RANGE)) if self.has_relu6 else ("none", [])
        output_scale = RELU6_RANGE[1] / MAX_LEVEL if self.has_relu6 else 1.0
        return _onednn().qconv2d_pointwise(
            *(x, self.scale, self.zero_point),
            *(self._packed, self.weight_scale, self.weight_zero_point, self.bias),
            *(self.stride, padding, [1, 1], self.groups),
            *(output_scale, 0, torch.uint8 if self.has_relu6 else torch.float32),
            *(*activation, ""),
        )

    def _pad_same(self, x: Tensor) -> Tensor:
        """Pad with the level of zero so that ceil(size / stride) locations fit."""
        pads: list[int] = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        padded = F.pad(x, pads, value=self.zero_point)
        return padded.contiguous(memory_format=torch.channels_last)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights can be neither copied nor pickled.
        return self.__dict__ | {"_packed": None}


class _Dequantize(nn.Module):
    """Levels of ReLU6's range -> float32."""

    def forward(self, levels: Tensor) -> Tensor:
        return levels.float() * (RELU6_RANGE[1] / MAX_LEVEL)


@dataclass(frozen=True)
class _ChannelStatistics:
    """What is known of the values of each channel of a map.

    Attributes:
        mean: (C,).
        variance: (C,).
        range: contains almost all values of all channels, and zero.
    """

    mean: Tensor
    variance: Tensor
    range: tuple[float, float]

    @staticmethod
    def normal(mean: Tensor, variance: Tensor) -> _ChannelStatistics:
        deviation = RANGE_DEVIATIONS * variance.sqrt()
        low, high = (mean - deviation).min(), (mean + deviation).max()
        return _ChannelStatistics(mean, variance, (min(float(low), 0.0), max(float(high), 0.0)))

    @staticmethod
    def of(norm: nn.BatchNorm2d) -> _ChannelStatistics:
        """Of the output of a batch norm, before its activation."""
        return _ChannelStatistics.normal(norm.bias.detach(), norm.weight.detach().square())

    @staticmethod
    def of_relu6(norm: nn.BatchNorm2d) -> _ChannelStatistics:
        """Of the output of a batch norm after ReLU6, a clamped normal distribution."""
        low, high = RELU6_RANGE
        mean, deviation = norm.bias.detach(), norm.weight.detach().abs().clamp(min=1e-6)
        from_low, from_high = (low - mean) / deviation, (high - mean) / deviation
        standard = torch.distributions.Normal(0.0, 1.0)
        inside = standard.cdf(from_high) - standard.cdf(from_low)
        density = standard.log_prob(from_low).exp() - standard.log_prob(from_high).exp()
        clamped = mean * inside + deviation * density + high * (1 - standard.cdf(from_high))
        return _ChannelStatistics(clamped, deviation.square(), RELU6_RANGE)

    def plus(self, other: _ChannelStatistics) -> _ChannelStatistics:
        """Of the sum with an independent map."""
        return _ChannelStatistics.normal(self.mean + other.mean, self.variance + other.variance)


@functools.cache
def supports_int8() -> bool:
    """Whether this machine and this torch have oneDNN's integer convolutions in a fast form."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not is_x86 or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return False  # without AVX2
    mean = torch.zeros(1)
    conv = Int8Conv2d(nn.Conv2d(1, 1, 1), input_range=(0, 1), input_mean=mean, has_relu6=True)
    try:
        conv(torch.zeros(1, 1, 1, 1))
    except (AttributeError, RuntimeError, TypeError):
        # The operator is missing, or has other arguments.
        return False
    return True


def quantize_classifier(classifier: nn.Module) -> nn.Module | None:
    """A copy of a frozen classifier whose blocks compute in integers.

    Args:
        classifier: of timm, with its batch norms. Its parts are known by the names that timm gives
            them: ``conv_dw`` and ``conv_pw`` of depthwise separable blocks, ``conv_pw``,
            ``conv_dw`` and ``conv_pwl`` of inverted residuals, and ``conv_head``.

    Returns:
        (N, 3, H, W) -> (N, classes) like the classifier; the first convolution and the last layer
        are in float32. None of a classifier with other blocks, or with an activation other than
        ReLU6.
    """
    if not _has_known_parts(classifier):
        return None
    quantized: Any = copy.deepcopy(classifier).eval()
    statistics = _ChannelStatistics.of_relu6(quantized.bn1)
    quantized.conv_stem = fuse_conv_bn_eval(quantized.conv_stem, quantized.bn1)
    quantized.bn1 = quantized.bn1.act
    for block in (block for stage in quantized.blocks for block in stage):
        output = _quantize_block(block, statistics)
        statistics = statistics.plus(output) if block.has_skip else output
    _quantize_conv(quantized, "conv_head", "bn2", statistics, has_relu6=True)
    quantized.bn2 = _Dequantize()
    return quantized.requires_grad_(False)


def _quantize_block(block: nn.Module, statistics: _ChannelStatistics) -> _ChannelStatistics:
    """Replace the convolutions of a block, whose input has ``statistics``.

    Returns:
        Those of the last convolution's output.
    """
    *inner, last = _PARTS_OF_BLOCK[type(block).__name__]
    for conv, norm in inner:
        output = _ChannelStatistics.of_relu6(getattr(block, norm))
        _quantize_conv(block, conv, norm, statistics, has_relu6=True)
        statistics = output
    output = _ChannelStatistics.of(getattr(block, last[1]))
    _quantize_conv(block, *last, statistics, has_relu6=False)
    return output


def _quantize_conv(
    block: nn.Module, conv: str, norm: str, statistics: _ChannelStatistics, *, has_relu6: bool
) -> None:
    """Replace a convolution and its batch norm, by name; its input has ``statistics``."""
    quantized = Int8Conv2d(
        fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)),
        input_range=statistics.range,
        input_mean=statistics.mean,
        has_relu6=has_relu6,
    )
    setattr(block, conv, quantized)
    setattr(block, norm, nn.Identity())


# The convolutions of timm's blocks, each with its batch norm; the last one has no activation.
_PARTS_OF_BLOCK: dict[str, Sequence[tuple[str, str]]] = {
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def _has_known_parts(classifier: Any) -> bool:
    names = ("conv_stem", "bn1", "blocks", "conv_head", "bn2")
    if not all(hasattr(classifier, name) for name in names):
        return False
    blocks = [block for stage in classifier.blocks for block in stage]
    has_relu6 = all(isinstance(norm.act, nn.ReLU6) for norm in (classifier.bn1, classifier.bn2))
    return has_relu6 and all(_is_known(block) for block in blocks)


def _is_known(block: Any) -> bool:
    names = _PARTS_OF_BLOCK.get(type(block).__name__)
    if names is None or not all(isinstance(x, nn.Identity) for x in (block.se, block.aa)):
        return False
    if any(getattr(block, conv).dilation != (1, 1) for conv, _ in names):
        return False
    *inner, (_, last) = [(conv, getattr(block, norm)) for conv, norm in names]
    return isinstance(last.act, nn.Identity) and all(
        isinstance(norm.act, nn.ReLU6) for _, norm in inner
    )


def _onednn() -> Any:
    return torch.ops.onednn
