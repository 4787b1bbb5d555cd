from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.dropout import keep_, keep_bits


def bits_of(count: int, p: float, seed: int = 0) -> torch.Tensor:
    return keep_bits(torch.empty(count), p, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability(p: float) -> None:
    count = 400_003
    bits = bits_of(count, p)
    assert set(bits.unique().tolist()) <= {-1, 0}
    standard_deviation = (count * p * (1 - p)) ** 0.5
    assert abs(bits.eq(0).sum().item() - count * p) <= 4 * standard_deviation


def test_neighbours_are_dropped_independently() -> None:
    """All four entries of a draw behave alike, and pairs of them as often as chance has it."""
    dropped = bits_of(400_000, 0.2).eq(0).view(-1, 4).float()
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((4,), 0.2), atol=0.006, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped.T), torch.eye(4), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_what_stays_stays_as_it_is(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7).to(dtype)
    bits = keep_bits(x, 0.4, torch.Generator().manual_seed(0))
    kept = keep_(x.clone(), bits)
    assert 0 < kept.count_nonzero() < x.numel()
    assert torch.equal(kept, torch.where(bits == -1, x, 0.0))


def test_the_seed_decides() -> None:
    assert torch.equal(bits_of(1000, 0.3, seed=1), bits_of(1000, 0.3, seed=1))
    assert not torch.equal(bits_of(1000, 0.3, seed=1), bits_of(1000, 0.3, seed=2))


def test_without_bits_nothing_is_dropped() -> None:
    x = torch.randn(100)
    assert torch.equal(keep_(x.clone(), None), x)
