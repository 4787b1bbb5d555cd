from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.dropout import keep_, keep_bits


def bits_of(count: int, p: float, seed: int = 0) -> torch.Tensor:
    bits = keep_bits(torch.empty(count), p, seed)
    return torch.full((count,), -1, dtype=torch.int8) if bits is None else bits


@pytest.mark.parametrize("p", [0.0, 0.002, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability(p: float) -> None:
    count, num_calls = 4003, 500
    shares = torch.tensor(
        [bits_of(count, p, seed).eq(0).float().mean() for seed in range(num_calls)]
    )
    of_entries = p * (1 - p) / count
    of_calls = 0.25 / 256**2  # at most: a call drops one of two neighbouring 256ths
    standard_deviation = ((of_entries + of_calls) / num_calls) ** 0.5
    assert abs(shares.mean().item() - p) <= 4 * standard_deviation * (p > 0)


def test_a_call_keeps_or_drops_and_nothing_else() -> None:
    assert bits_of(4003, 0.3).unique().tolist() == [-1, 0]


def test_neighbours_are_dropped_independently() -> None:
    """All eight entries of a draw behave alike, and pairs of them as often as chance has it."""
    dropped = bits_of(800_000, 0.25).eq(0).view(-1, 8).float()
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((8,), 0.25), atol=0.006, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped.T), torch.eye(8), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_what_stays_stays_as_it_is(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7).to(dtype)
    bits = bits_of(x.numel(), 0.4).view_as(x)
    kept = keep_(x.clone(), bits)
    assert 0 < kept.count_nonzero() < x.numel()
    assert torch.equal(kept, torch.where(bits == -1, x, 0.0))


def test_the_seed_decides() -> None:
    assert torch.equal(bits_of(1000, 0.3, seed=1), bits_of(1000, 0.3, seed=1))
    assert not torch.equal(bits_of(1000, 0.3, seed=1), bits_of(1000, 0.3, seed=2))


def test_without_bits_nothing_is_dropped() -> None:
    x = torch.randn(100)
    assert torch.equal(keep_(x.clone(), None), x)
