from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.dropout import dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_of_zeros_is_the_probability(p: float) -> None:
    torch.manual_seed(0)
    count = 400_003
    dropped = (~keep_mask(torch.empty(count), p)).sum().item()
    standard_deviation = (count * p * (1 - p)) ** 0.5
    assert abs(dropped - count * p) < 4 * standard_deviation


def test_neighbours_are_dropped_independently() -> None:
    """All four entries of a draw behave alike, and pairs of them as often as chance has it."""
    torch.manual_seed(0)
    dropped = (~keep_mask(torch.empty(400_000), 0.2)).view(-1, 4).float()
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((4,), 0.2), atol=0.006, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped.T), torch.eye(4), atol=0.015, rtol=0)


def test_what_stays_is_scaled_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, requires_grad=True)
    out = dropout(x, 0.4, training=True)
    out.sum().backward()
    kept = out != 0
    assert 0 < kept.sum() < x.numel()
    torch.testing.assert_close(out, torch.where(kept, x / 0.6, 0.0))
    torch.testing.assert_close(x.grad, torch.where(kept, 1 / 0.6, 0.0))


def test_the_seed_decides() -> None:
    x = torch.ones(1000)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropout(x, 0.3, training=True))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_where_nothing_is_asked(p: float, training: bool) -> None:
    x = torch.randn(100)
    assert torch.equal(dropout(x, p, training), x)
