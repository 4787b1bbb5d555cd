from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glipv2_d2.modeling.losses import box_loss, centerness_targets, giou_loss

MISC = Path(__file__).parents[2] / "assets" / "misc" / "misc.npz"


@pytest.fixture(scope="module")
def misc() -> dict[str, Tensor]:
    arrays = np.load(MISC)
    return {name: torch.from_numpy(arrays[name]) for name in arrays}


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    top_left = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50 + 1
    return torch.cat([top_left, top_left + size], dim=1)


def test_giou_loss_is_the_references(misc: dict[str, Tensor]) -> None:
    loss = giou_loss(misc["boxcoder/decoded"], misc["boxcoder/gt"]).sum()
    torch.testing.assert_close(loss, misc["giou_loss_sum"], atol=0, rtol=1e-5)


def test_giou_loss_is_the_papers_formula() -> None:
    first, second = random_boxes(20, seed=0), random_boxes(20, seed=1)
    losses = giou_loss(first, second)
    for loss, a, b in zip(losses, first.tolist(), second.tolist(), strict=True):
        shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(
            min(a[3], b[3]) - max(a[1], b[1]), 0
        )
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        assert loss.item() == pytest.approx(1 - (shared / union - (hull - union) / hull))


def test_giou_loss_is_between_0_and_2() -> None:
    box, far = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[1e4, 1e4, 1e4 + 1, 1e4 + 1]])
    assert giou_loss(box, box).item() == pytest.approx(0, abs=1e-6)
    assert giou_loss(box, far).item() == pytest.approx(2, abs=1e-6)


def test_a_box_whose_end_precedes_its_start_is_empty() -> None:
    target = torch.tensor([[0.0, 0, 10, 10]])
    inside_out, empty = torch.tensor([[6.0, 6, 2, 3]]), torch.tensor([[6.0, 6, 6, 6]])
    assert giou_loss(inside_out, target).equal(giou_loss(empty, target))


def test_boxes_without_area_have_a_finite_loss_and_gradient() -> None:
    point = torch.tensor([[3.0, 3, 3, 3]])
    pred = point.clone().requires_grad_()
    giou_loss(pred, point).sum().backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


def test_gradient_of_giou_loss_is_that_of_finite_differences() -> None:
    pred, target = random_boxes(6, seed=2).requires_grad_(), random_boxes(6, seed=3)
    assert torch.autograd.gradcheck(giou_loss, (pred, target))


def test_centerness_targets_are_the_references(misc: dict[str, Tensor]) -> None:
    targets = centerness_targets(misc["boxcoder/anchors"], misc["centerness/gt"])
    torch.testing.assert_close(targets, misc["centerness/t"], atol=1e-6, rtol=0)


def test_centerness_is_1_at_the_centre_and_0_on_and_beyond_the_edge() -> None:
    anchors = torch.tensor([[4.0, 4, 6, 6], [-1, 4, 1, 6], [-9, 4, -7, 6], [20, 20, 22, 22]])
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    assert centerness_targets(anchors, boxes).tolist() == [1, 0, 0, 0]


def test_centerness_multiplies_both_axes() -> None:
    # Centre (2, 4) in a box of 10 x 8: ratios 2 / 8 and 4 / 4.
    targets = centerness_targets(torch.tensor([[1.0, 3, 3, 5]]), torch.tensor([[0.0, 0, 10, 8]]))
    torch.testing.assert_close(targets, torch.tensor([0.5]))


def test_box_loss_is_a_weighted_mean() -> None:
    pred, target = random_boxes(5, seed=4), random_boxes(5, seed=5)
    weights = torch.tensor([0.1, 0.9, 0.5, 0.0, 1.0], dtype=torch.float64)
    expected = np.average(giou_loss(pred, target).numpy(), weights=weights.numpy())
    assert box_loss(pred, target, weights, weights.sum()).item() == pytest.approx(expected)
