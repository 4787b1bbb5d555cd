import torch

from glipv2_d2.layers.dynamic_relu import DynamicReLU, map_mean


def test_equals_the_formula() -> None:
    torch.manual_seed(0)
    layer, x = DynamicReLU(8), torch.randn(2, 8, 3, 4)
    pooled = x.flatten(2).mean(dim=2)
    coefficients = ((layer.excite(layer.squeeze(pooled).clamp(min=0)) + 3).clamp(0, 6) / 6).view(
        2, 4, 8, 1, 1
    )
    a1, b1, a2, b2 = coefficients.unbind(dim=1)
    first = x * ((a1 - 0.5) * 2 + 1) + (b1 - 0.5)
    second = x * ((a2 - 0.5) * 2) + (b2 - 0.5)
    torch.testing.assert_close(layer(x), torch.where(first > second, first, second))


def test_is_plain_relu_when_the_coefficients_are_neutral() -> None:
    layer, x = DynamicReLU(4), torch.randn(1, 4, 5, 5)
    with torch.no_grad():  # hardsigmoid(0) = 0.5: slopes 1 and 0, no offsets
        layer.excite.weight.zero_()
        layer.excite.bias.zero_()
    torch.testing.assert_close(layer(x), x.relu())


def test_mean_of_a_bf16_map_accumulates_in_fp32() -> None:
    """A sum of ones accumulated in bf16 would stop at 256."""
    x = torch.ones(1, 2, 50, 60, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    torch.testing.assert_close(map_mean(x), torch.ones(1, 2, dtype=torch.bfloat16))
