"""Linear layers with packed weights, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.packed_linear import MIN_ROWS, prepared_linear, prepared_module

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("num_rows", [MIN_ROWS - 1, MIN_ROWS, 2 * MIN_ROWS])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_linear_and_gelu(dtype: torch.dtype, num_rows: int, gelu: bool) -> None:
    weight, bias, x = random(48, 20), random(48), random(num_rows, 20)
    expected = F.linear(x.double(), weight.double(), bias.double())
    expected = F.gelu(expected) if gelu else expected
    with torch.no_grad():
        linear = prepared_linear(
            weight.to(dtype), bias.to(dtype), num_rows=3 * MIN_ROWS, block_rows=MIN_ROWS, gelu=gelu
        )
        ours = linear(x.to(dtype))
    assert ours.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=20 * tolerance)


def test_a_part_of_a_tensor_and_missing_bias() -> None:
    weight, x = random(48, 20), random(MIN_ROWS, 40)[:, :20]
    with torch.no_grad():
        ours = prepared_linear(weight, None, num_rows=MIN_ROWS, block_rows=MIN_ROWS)(x)
    torch.testing.assert_close(ours, F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_under_autocast_it_is_bf16() -> None:
    linear, x = nn.Linear(20, 48), random(MIN_ROWS, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = prepared_module(linear, num_rows=MIN_ROWS, block_rows=MIN_ROWS)(x)
        expected = linear(x)
    assert ours.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


def test_gradients_flow() -> None:
    linear, x = nn.Linear(20, 48), random(MIN_ROWS, 20)
    prepared_module(linear, num_rows=MIN_ROWS, block_rows=MIN_ROWS, gelu=True)(x).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().sum() > 0


class Adapter(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("gelu", [False, True])
def test_an_adapter_is_called(gelu: bool) -> None:
    adapter, x = Adapter(20, 48), random(MIN_ROWS, 20)
    with torch.no_grad():
        ours = prepared_module(adapter, num_rows=MIN_ROWS, block_rows=MIN_ROWS, gelu=gelu)(x)
        expected = F.linear(x, adapter.weight, adapter.bias) + 1
    torch.testing.assert_close(ours, F.gelu(expected) if gelu else expected)


def test_hooks_of_a_linear_layer_are_called() -> None:
    linear, outputs = nn.Linear(20, 48), []
    linear.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        result = prepared_module(linear, num_rows=MIN_ROWS, block_rows=MIN_ROWS)(
            random(MIN_ROWS, 20)
        )
    assert outputs[0] is result


def test_without_outputs() -> None:
    with torch.no_grad():
        linear = prepared_linear(torch.zeros(0, 20), None, num_rows=MIN_ROWS, block_rows=MIN_ROWS)
        assert linear(torch.zeros(MIN_ROWS, 20)).shape == (MIN_ROWS, 0)


def test_only_inputs_of_one_size_are_multiplied_by_packed_weights() -> None:
    """Of other sizes, oneDNN would keep a primitive each."""
    weight = random(48, 20)
    with torch.no_grad(), torch.profiler.profile() as profile:
        linear = prepared_linear(weight, None, num_rows=4 * MIN_ROWS, block_rows=MIN_ROWS)
        for rows in (MIN_ROWS, MIN_ROWS, MIN_ROWS - 1, MIN_ROWS + 1):
            linear(random(rows, 20))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 2
    assert calls["aten::linear"] == 2


def test_changed_weights_are_used() -> None:
    linear, x = nn.Linear(20, 48), random(MIN_ROWS, 20)
    with torch.no_grad():
        before = prepared_module(linear, num_rows=MIN_ROWS, block_rows=MIN_ROWS)(x)
        linear.weight.data.mul_(2)
        linear.bias.data.mul_(2)
        after = prepared_module(linear, num_rows=MIN_ROWS, block_rows=MIN_ROWS)(x)
    torch.testing.assert_close(after, 2 * before)
