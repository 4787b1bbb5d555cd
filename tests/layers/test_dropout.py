from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.dropout import apply_keep_mask_, keep_mask


def draw(count: int, p: float, seed: int = 0) -> torch.Tensor:
    mask = keep_mask(torch.empty(count), p, seed)
    return torch.full((count,), -1, dtype=torch.int8) if mask is None else mask


@pytest.mark.parametrize("p", [0.0, 0.002, 0.1, 0.5, 0.9])
def test_fraction_of_zeros_is_the_probability(p: float) -> None:
    count, num_calls = 4003, 500
    fractions = torch.tensor(
        [draw(count, p, seed).eq(0).float().mean() for seed in range(num_calls)]
    )
    entry_variance = p * (1 - p) / count
    call_variance = 0.25 / 256**2  # at most: a call uses one of two neighbouring multiples of 1/256
    standard_deviation = ((entry_variance + call_variance) / num_calls) ** 0.5
    assert abs(fractions.mean().item() - p) <= 4 * standard_deviation * (p > 0)


def test_mask_has_two_values() -> None:
    assert draw(4003, 0.3).unique().tolist() == [-1, 0]


def test_neighbours_are_dropped_independently() -> None:
    """The eight entries of a draw have equal rates and are pairwise uncorrelated."""
    dropped = draw(800_000, 0.25).eq(0).view(-1, 8).float()
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((8,), 0.25), atol=0.006, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped.T), torch.eye(8), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_kept_entries_are_unchanged(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7).to(dtype)
    mask = draw(x.numel(), 0.4).view_as(x)
    kept = apply_keep_mask_(x.clone(), mask)
    assert 0 < kept.count_nonzero() < x.numel()
    assert torch.equal(kept, torch.where(mask == -1, x, 0.0))


def test_seed_determines_the_mask() -> None:
    assert torch.equal(draw(1000, 0.3, seed=1), draw(1000, 0.3, seed=1))
    assert not torch.equal(draw(1000, 0.3, seed=1), draw(1000, 0.3, seed=2))


def test_no_mask_drops_nothing() -> None:
    x = torch.randn(100)
    assert torch.equal(apply_keep_mask_(x.clone(), None), x)
