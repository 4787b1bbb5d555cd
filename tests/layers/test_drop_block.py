from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers.drop_block import DropBlock


def dropped(side: int, prob: float, block_size: int) -> torch.Tensor:
    torch.manual_seed(0)
    return DropBlock(prob=prob, block_size=block_size)(torch.ones(4, 3, side, side))


def test_eval_mode_is_the_identity() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert DropBlock(prob=0.9, block_size=3).eval()(x) is x


def test_probability_zero_drops_nothing() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert DropBlock(prob=0.0, block_size=3)(x) is x


def test_all_channels_drop_the_same_cells() -> None:
    zeros = dropped(side=16, prob=0.3, block_size=3) == 0
    assert zeros.any() and not zeros.all()
    assert torch.equal(zeros, zeros[:, :1].expand_as(zeros))


def test_images_drop_different_cells() -> None:
    zeros = dropped(side=16, prob=0.3, block_size=3) == 0
    assert not torch.equal(zeros[0], zeros[1])


def test_scaling_preserves_the_mean_of_the_batch() -> None:
    assert dropped(side=16, prob=0.3, block_size=3).mean() == pytest.approx(1.0)


def test_cells_are_dropped_in_squares_of_the_block_size() -> None:
    zeros = (dropped(side=64, prob=0.05, block_size=5) == 0).float()
    # Morphological opening, erosion then dilation by a block, leaves unions of blocks unchanged.
    block = torch.nn.MaxPool2d(5, stride=1, padding=2)
    opened = block(-block(-zeros))
    inside = (..., slice(4, -4), slice(4, -4))
    assert zeros[inside].any()
    assert torch.equal(opened[inside], zeros[inside])


def test_fraction_of_seeds_is_prob_over_the_area_of_a_block() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 1, 400, 400)
    dropped_fraction = (DropBlock(prob=0.3, block_size=3)(x) == 0).float().mean()
    assert dropped_fraction == pytest.approx(1 - (1 - 0.3 / 9) ** 9, abs=0.01)


def test_batch_with_every_cell_dropped_is_zero_and_not_nan() -> None:
    torch.manual_seed(0)
    output = DropBlock(prob=0.99, block_size=1)(torch.ones(1, 2, 1, 1))
    assert torch.equal(output, torch.zeros(1, 2, 1, 1))


def test_dtype_is_preserved() -> None:
    x = torch.ones(1, 2, 8, 8, dtype=torch.bfloat16)
    assert DropBlock(prob=0.3, block_size=3)(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("prob", "block_size", "message"),
    [
        (1.0, 3, "prob is 1.0"),
        (-0.1, 3, "prob is -0.1"),
        (0.3, 2, "block_size is 2"),
        (0.3, 0, "block_size is 0"),
    ],
)
def test_arguments_out_of_range_are_named(prob: float, block_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DropBlock(prob=prob, block_size=block_size)
