"""The logits of "yes", "no" and numbers by the regions that match a question."""

from __future__ import annotations

import math

import pytest
import torch

from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.pointer_answer import RegionCounter
from glipv2_mini.modeling.region_text_tasks import RegionQuestionFeatures
from glipv2_mini.modeling.regions import Regions

ANSWERS = ["red", "yes", "no", "0", "1", "2", "3"]
UNRELATED = -6.0


def make_question(matches: list[float], num_regions: int = 4) -> RegionQuestionFeatures:
    """A question of three tokens, of which the second matches the regions; the third is padding."""
    logits = torch.full((1, num_regions, 3), UNRELATED)
    logits[0, : len(matches), 1] = torch.tensor(matches)
    logits[:, :, 2] = 50.0
    boxes = torch.zeros(1, num_regions, 5)
    boxes[0, : len(matches), 4] = 1
    mask = torch.tensor([[True, True, False]])
    features = torch.zeros(1, num_regions, 2)
    return RegionQuestionFeatures(
        TextFeatures(torch.zeros(1, 3, 2), mask), Regions(features, features, boxes), logits
    )


def answer(matches: list[float], answers: list[str]) -> str:
    scores = RegionCounter()(make_question(matches), ANSWERS)[0]
    columns = [ANSWERS.index(x) for x in answers]
    return answers[int(scores[columns].argmax())]


@pytest.mark.parametrize(
    ("matches", "expected"), [([1.0, -6.0], "yes"), ([-5.0, -6.0], "no"), ([], "no")]
)
def test_something_is_there_if_a_region_matches(matches: list[float], expected: str) -> None:
    assert answer(matches, ["yes", "no"]) == expected


@pytest.mark.parametrize("matches", [[1.0], [1.0, 0.8], [1.0, 0.9, 0.8]])
def test_regions_almost_as_good_as_the_best_are_counted(matches: list[float]) -> None:
    assert answer([*matches, -3.0], ANSWERS[3:]) == str(len(matches))


def test_nothing_is_counted_where_no_region_matches() -> None:
    assert answer([-6.0, -6.0, -6.0], ANSWERS[3:]) == "0"


@pytest.mark.parametrize(("x", "expected"), [(0.5, "1"), (0.9, "2")], ids=["in it", "beside it"])
def test_a_region_in_a_better_one_is_not_counted(x: float, expected: str) -> None:
    question = make_question([1.0, 0.9])
    question.regions.boxes[0, 0] = torch.tensor([0.4, 0.5, 0.6, 0.6, 1.0])
    question.regions.boxes[0, 1] = torch.tensor([x, 0.5, 0.1, 0.1, 1.0])
    numbers = ANSWERS[3:]
    assert numbers[int(RegionCounter()(question, numbers)[0].argmax())] == expected


def test_the_logits_of_one_matching_region() -> None:
    scores = RegionCounter()(make_question([1.0]), ANSWERS)[0]
    presence = math.tanh(3 * (1.0 + 1.9))
    counted = 1 / (1 + math.exp(-3 * 1.25))
    number = counted * (1 + presence) / 2
    expected = [0, 3 * presence, -3 * presence, *(-3 * abs(number - n) for n in range(4))]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_all_parameters_receive_gradients() -> None:
    counter = RegionCounter()
    counter(make_question([-1.6, -2.4]), ANSWERS).square().sum().backward()
    assert all(float(parameter.grad.abs()) > 0 for parameter in counter.parameters())
