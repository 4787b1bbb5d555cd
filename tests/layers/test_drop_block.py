from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.drop_block import DropBlock


def dropped(side: int, prob: float, block_size: int) -> torch.Tensor:
    torch.manual_seed(0)
    return DropBlock(prob=prob, block_size=block_size)(torch.ones(4, 3, side, side))


def test_is_the_identity_in_eval_mode() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert DropBlock(prob=0.9, block_size=3).eval()(x) is x


def test_probability_zero_drops_nothing() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert DropBlock(prob=0.0, block_size=3)(x) is x


def test_all_channels_lose_the_same_cells() -> None:
    zeros = dropped(side=16, prob=0.3, block_size=3) == 0
    assert zeros.any() and not zeros.all()
    assert torch.equal(zeros, zeros[:, :1].expand_as(zeros))


def test_images_lose_different_cells() -> None:
    zeros = dropped(side=16, prob=0.3, block_size=3) == 0
    assert not torch.equal(zeros[0], zeros[1])


def test_what_is_left_keeps_the_mean_of_the_batch() -> None:
    assert dropped(side=16, prob=0.3, block_size=3).mean() == pytest.approx(1.0)


def test_cells_are_lost_in_squares_of_the_block_size() -> None:
    zeros = (dropped(side=64, prob=0.05, block_size=5) == 0).float()
    # Opening: shrink by a block, grow by it again. What whole blocks make up comes back unchanged.
    block = torch.nn.MaxPool2d(5, stride=1, padding=2)
    opened = block(-block(-zeros))
    inside = (..., slice(4, -4), slice(4, -4))
    assert zeros[inside].any()
    assert torch.equal(opened[inside], zeros[inside])


def test_share_of_seeds_is_prob_over_the_area_of_a_block() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 1, 400, 400)
    lost = (DropBlock(prob=0.3, block_size=3)(x) == 0).float().mean()
    assert lost == pytest.approx(1 - (1 - 0.3 / 9) ** 9, abs=0.01)


def test_a_batch_that_lost_every_cell_is_zero_and_not_nan() -> None:
    torch.manual_seed(0)
    lost = DropBlock(prob=0.99, block_size=1)(torch.ones(1, 2, 1, 1))
    assert torch.equal(lost, torch.zeros(1, 2, 1, 1))


def test_keeps_the_dtype() -> None:
    x = torch.ones(1, 2, 8, 8, dtype=torch.bfloat16)
    assert DropBlock(prob=0.3, block_size=3)(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("prob", "block_size", "value"),
    [(1.0, 3, "1.0"), (-0.1, 3, "-0.1"), (0.3, 2, "2"), (0.3, 0, "0")],
)
def test_impossible_settings_are_named(prob: float, block_size: int, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        DropBlock(prob=prob, block_size=block_size)
