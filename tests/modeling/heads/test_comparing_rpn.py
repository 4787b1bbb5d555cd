"""The comparison of what a phrase fits, against its definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.modeling.heads.comparing_rpn import SHARPNESS, PlaceComparison
from glipv2_d2.structures import TextFeatures

DIM = 3
RIGHT, LEFT, LARGER = (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def make_comparison(strength: float = 5.0) -> PlaceComparison:
    """Words of three numbers are the directions that they mean."""
    comparison = PlaceComparison(language_dim=DIM)
    with torch.no_grad():
        comparison.direction.weight.copy_(strength * torch.eye(DIM))
    return comparison


def words(*directions: tuple[float, ...]) -> TextFeatures:
    hidden = torch.tensor(directions)[None]
    return TextFeatures(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))


def compare(
    boxes: list[list[float]], logits: list[float], direction: tuple[float, ...]
) -> list[float]:
    """The logits of one word, compared."""
    before = torch.tensor(logits)[None, :, None]
    (after,) = make_comparison()([before], torch.tensor([boxes]), words(direction))
    return after[0, :, 0].tolist()


def random_inputs(seed: int) -> tuple[Tensor, Tensor, TextFeatures]:
    random = torch.Generator().manual_seed(seed)
    corners = 200 * torch.rand(2, 7, 2, generator=random)
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(2, 7, 2, generator=random)], dim=-1)
    hidden = torch.randn(2, 4, DIM, generator=random)
    logits = torch.randn(2, 7, 4, generator=random)
    return logits, boxes, TextFeatures(hidden, torch.ones(2, 4, dtype=torch.bool))


TWO_THINGS = [[10.0, 50, 49, 89], [200.0, 50, 239, 89]]


@pytest.mark.parametrize(("direction", "meant"), [(LEFT, 0), (RIGHT, 1)])
def test_the_thing_that_lies_there_keeps_its_score_and_the_other_loses(
    direction: tuple[float, ...], meant: int
) -> None:
    after = compare(TWO_THINGS, [2.0, 2.0], direction)
    assert 2.0 < after[meant] < 2.0 + math.log(2)
    assert after[1 - meant] < -1


def test_the_larger_of_two_things_keeps_its_score() -> None:
    after = compare([[10.0, 50, 49, 89], [60.0, 20, 179, 139]], [2.0, 2.0], LARGER)
    assert after[1] > 2.0 > after[0]


def test_what_the_word_does_not_match_gains_almost_nothing_and_does_not_vote() -> None:
    far_left = [-5000.0, 50, -4961, 89]
    after = compare([*TWO_THINGS, far_left], [2.0, 2.0, -30.0], LEFT)
    assert after[:2] == pytest.approx(compare(TWO_THINGS, [2.0, 2.0], LEFT), abs=1e-4)
    assert after[2] == pytest.approx(-30 + math.log(2), abs=1e-4)


def test_untrained_it_changes_nothing() -> None:
    logits, boxes, language = random_inputs(0)
    (after,) = PlaceComparison(language_dim=DIM)([logits], boxes, language)
    torch.testing.assert_close(after, logits)


def test_equals_the_definition_written_out() -> None:
    logits, boxes, language = random_inputs(1)
    comparison = make_comparison(0.7)
    after = torch.cat(comparison([logits[:, :5], logits[:, 5:]], boxes, language), dim=1)
    for n in range(2):
        for t in range(4):
            votes = [math.exp(SHARPNESS * float(logit)) for logit in logits[n, :, t]]
            total = sum(votes)
            sizes = [(x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in boxes[n].tolist()]
            places = [
                ((x1 + x2) / 2, (y1 + y2) / 2, math.log(w * h))
                for (x1, y1, x2, y2), (w, h) in zip(boxes[n].tolist(), sizes, strict=True)
            ]

            def mean(
                values: list[float], votes: list[float] = votes, total: float = total
            ) -> float:
                return sum(v * x for v, x in zip(votes, values, strict=True)) / total

            for a in range(7):
                fits = 0.0
                for k in range(3):
                    center = mean([place[k] for place in places])
                    spread = 1.0
                    if k < 2:
                        variance = mean([(place[k] - center) ** 2 for place in places])
                        half = mean([size[k] for size in sizes]) / 2
                        spread = math.sqrt(variance + half**2)
                    direction = 0.7 * float(language.hidden[n, t, k])
                    fits += direction * (places[a][k] - center) / spread
                expected = float(logits[n, a, t]) + math.log(2 / (1 + math.exp(-fits)))
                assert float(after[n, a, t]) == pytest.approx(expected, abs=1e-4)


@given(shift=st.floats(-500, 500), scale=st.floats(0.5, 4.0), seed=st.integers(0, 20))
def test_where_the_picture_lies_and_how_large_it_is_do_not_count(
    shift: float, scale: float, seed: int
) -> None:
    logits, boxes, language = random_inputs(seed)
    moved = (boxes + boxes.new_tensor([0, 0, 1, 1])) * scale + shift
    moved = moved - boxes.new_tensor([0, 0, 1, 1])
    comparison = make_comparison(1.0)
    before, after = (comparison([logits], b, language)[0] for b in (boxes, moved))
    torch.testing.assert_close(before, after, atol=2e-3, rtol=1e-3)


def test_scores_teach_the_direction_and_boxes_learn_nothing() -> None:
    logits, boxes, language = random_inputs(2)
    comparison = PlaceComparison(language_dim=DIM)
    logits.requires_grad_()
    comparison([logits], boxes, language)[0].square().sum().backward()
    assert comparison.direction.weight.grad.abs().sum() > 0
    torch.testing.assert_close(logits.grad, 2 * logits.detach())
