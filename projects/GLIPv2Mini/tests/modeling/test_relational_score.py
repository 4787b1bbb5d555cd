"""The relational score, against its definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glipv2_mini.modeling.relational_score import SHARPNESS, RelationalScore

RIGHT, LEFT, LARGER = (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def make_score(strength: float = 5.0) -> RelationalScore:
    score = RelationalScore()
    torch.nn.init.constant_(score.strength, strength)
    return score


def score(
    boxes: list[list[float]], logits: list[float], direction: tuple[float, ...]
) -> list[float]:
    """The logits of one token, with the relational score."""
    before = torch.tensor(logits)[None, :, None]
    (after,) = make_score()([before], torch.tensor([boxes]), torch.tensor([[direction]]))
    return after[0, :, 0].tolist()


def random_inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, boxes and directions."""
    random = torch.Generator().manual_seed(seed)
    corners = 200 * torch.rand(2, 7, 2, generator=random)
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(2, 7, 2, generator=random)], dim=-1)
    directions = torch.randn(2, 4, 3, generator=random)
    return torch.randn(2, 7, 4, generator=random), boxes, directions


TWO_BOXES = [[10.0, 50, 49, 89], [200.0, 50, 239, 89]]


@pytest.mark.parametrize(("direction", "target"), [(LEFT, 0), (RIGHT, 1)])
def test_the_box_in_the_direction_keeps_its_score_and_the_other_loses(
    direction: tuple[float, ...], target: int
) -> None:
    after = score(TWO_BOXES, [2.0, 2.0], direction)
    assert 2.0 < after[target] < 2.0 + math.log(2)
    assert after[1 - target] < -1


def test_the_larger_of_two_boxes_keeps_its_score() -> None:
    after = score([[10.0, 50, 49, 89], [60.0, 20, 179, 139]], [2.0, 2.0], LARGER)
    assert after[1] > 2.0 > after[0]


def test_a_box_with_a_low_logit_has_almost_no_influence() -> None:
    far_left = [-5000.0, 50, -4961, 89]
    after = score([*TWO_BOXES, far_left], [2.0, 2.0, -30.0], LEFT)
    assert after[:2] == pytest.approx(score(TWO_BOXES, [2.0, 2.0], LEFT), abs=1e-4)
    assert after[2] == pytest.approx(-30 + math.log(2), abs=1e-4)


def test_words_without_a_direction_keep_their_logits() -> None:
    logits, boxes, directions = random_inputs(0)
    directions[:, 1] = 0
    (after,) = RelationalScore()([logits], boxes, directions)
    torch.testing.assert_close(after[..., 1], logits[..., 1])
    assert not torch.isclose(after[..., [0, 2, 3]], logits[..., [0, 2, 3]]).all()


def test_equals_the_definition_written_out() -> None:
    logits, boxes, directions = random_inputs(1)
    relational = make_score(0.7)
    after = torch.cat(relational([logits[:, :5], logits[:, 5:]], boxes, directions), dim=1)
    for n in range(2):
        for t in range(4):
            weights = [math.exp(SHARPNESS * float(logit)) for logit in logits[n, :, t]]
            total = sum(weights)
            sizes = [(x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in boxes[n].tolist()]
            coordinates = [
                ((x1 + x2) / 2, (y1 + y2) / 2, math.log(w * h))
                for (x1, y1, x2, y2), (w, h) in zip(boxes[n].tolist(), sizes, strict=True)
            ]

            def mean(
                values: list[float], weights: list[float] = weights, total: float = total
            ) -> float:
                return sum(v * x for v, x in zip(weights, values, strict=True)) / total

            for a in range(7):
                projection = 0.0
                for k in range(3):
                    center = mean([point[k] for point in coordinates])
                    spread = 1.0
                    if k < 2:
                        variance = mean([(point[k] - center) ** 2 for point in coordinates])
                        half = mean([size[k] for size in sizes]) / 2
                        spread = math.sqrt(variance + half**2)
                    direction = 0.7 * float(directions[n, t, k])
                    projection += direction * (coordinates[a][k] - center) / spread
                expected = float(logits[n, a, t]) + math.log(2 / (1 + math.exp(-projection)))
                assert float(after[n, a, t]) == pytest.approx(expected, abs=1e-4)


@given(shift=st.floats(-500, 500), scale=st.floats(0.5, 4.0), seed=st.integers(0, 20))
def test_shift_and_scale_of_the_image_do_not_matter(shift: float, scale: float, seed: int) -> None:
    logits, boxes, directions = random_inputs(seed)
    moved = (boxes + boxes.new_tensor([0, 0, 1, 1])) * scale + shift
    moved = moved - boxes.new_tensor([0, 0, 1, 1])
    relational = make_score(1.0)
    before, after = (relational([logits], b, directions)[0] for b in (boxes, moved))
    torch.testing.assert_close(before, after, atol=2e-3, rtol=1e-3)


def test_the_strength_and_logits_receive_gradients() -> None:
    logits, boxes, directions = random_inputs(2)
    relational = RelationalScore()
    logits.requires_grad_()
    relational([logits], boxes, directions)[0].square().sum().backward()
    assert relational.strength.grad.all() and logits.grad.all()


def test_without_directions_the_strength_receives_a_gradient_of_zero() -> None:
    """Distributed training waits for it."""
    logits, boxes, directions = random_inputs(3)
    relational = RelationalScore()
    relational([logits], boxes, torch.zeros_like(directions))[0].sum().backward()
    assert relational.strength.grad.tolist() == [0, 0, 0]
