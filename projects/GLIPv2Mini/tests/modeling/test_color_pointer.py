"""The logits of colours by the region that a question mentions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.evidence_backbone import (
    EVIDENCE_CHANNELS,
    FEATURE_CHANNELS,
    EvidenceLevel,
)
from glipv2_mini.modeling.pointer_answer import ColorPointer, best_matches
from glipv2_mini.modeling.region_text_tasks import RegionQuestionFeatures
from glipv2_mini.modeling.regions import Regions
from glipv2_mini.text.phrases import COLOR_NAMES

WIDTH, NUM_REGIONS = 4, 3
ANSWERS = ["yes", "Red", "2", "blue", "gray", "grey", "black and white", "dog"]
COLUMNS = {"red": 1, "blue": 3, "gray": 4}
NO_COLORS = [0, 2, 6, 7]

Region = tuple[str, float]
"""The colour of most of a region, and its logit for the second word of the question."""


def make_questions(*regions_per_question: list[Region]) -> RegionQuestionFeatures:
    """Questions of three tokens, of which the third is padding; all boxes are the same."""
    num = len(regions_per_question)
    boxes = torch.zeros(num, NUM_REGIONS, 5)
    features = torch.zeros(num, NUM_REGIONS, FEATURE_CHANNELS + EVIDENCE_CHANNELS)
    matches = torch.full((num, NUM_REGIONS, 3), -6.0)
    matches[..., 2] = 50.0
    colors = EvidenceLevel.split(features).color_probs
    for i, regions in enumerate(regions_per_question):
        for r, (color, match) in enumerate(regions):
            boxes[i, r] = torch.tensor([0.5, 0.5, 0.2, 0.2, 0.9])
            # A red thing is hardly half red.
            colors[i, r, COLOR_NAMES.index("gray")] = 0.55
            colors[i, r, COLOR_NAMES.index(color)] += 0.45
            matches[i, r, 1] = match
    mask = torch.tensor([True, True, False]).expand(num, -1)
    text = TextFeatures(torch.zeros(num, 3, WIDTH), mask)
    return RegionQuestionFeatures(text, Regions(features, features, boxes), matches)


def make_pooled(num: int) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pointer() -> ColorPointer:
    torch.manual_seed(0)
    return ColorPointer(language_dim=WIDTH)


@pytest.mark.parametrize("color", COLUMNS)
def test_the_best_colour_is_that_of_the_region_that_matches(
    pointer: ColorPointer, color: str
) -> None:
    others = [(other, -4.0) for other in COLUMNS if other != color]
    scores = pointer(make_pooled(1), make_questions([*others, (color, 1.0)]), ANSWERS)[0]
    best, second = scores[list(COLUMNS.values())].topk(2).values
    assert best == scores[COLUMNS[color]] > second + 1
    assert scores[4] == scores[5]


def test_a_colour_scores_0_for_a_region_of_it_and_less_for_others(pointer: ColorPointer) -> None:
    scores = pointer(make_pooled(1), make_questions([("red", 1.0)]), ANSWERS)[0]
    # The logarithms of (0.45 + 0.03) / (0.04 + 0.03) and (0 + 0.03) / (0.07 + 0.03).
    red, blue = 1.9253, -1.2040
    assert scores[COLUMNS["red"]].item() == pytest.approx(0, abs=1e-5)
    assert scores[COLUMNS["blue"]].item() == pytest.approx(2 * (blue - red), abs=1e-3)


def test_answers_that_are_no_colour_get_0(pointer: ColorPointer) -> None:
    scores = pointer(make_pooled(2), make_questions([("red", 1.0)], [("blue", -5.0)]), ANSWERS)
    assert not scores[:, NO_COLORS].any() and scores.any()


def test_without_regions_all_answers_get_0(pointer: ColorPointer) -> None:
    scores = pointer(make_pooled(2), make_questions([], [("red", 1.0)]), ANSWERS)
    assert not scores[0].any() and scores[1].any()


def test_training_finds_the_region_by_its_place(pointer: ColorPointer) -> None:
    """Two regions match alike; the questions differ in their pooled text."""
    questions = make_questions(*[[("red", 1.0), ("blue", 1.0)]] * 2)
    questions.regions.boxes[:, 0, 0], questions.regions.boxes[:, 1, 0] = 0.2, 0.8
    pooled, answers = make_pooled(2), ["red", "blue"]
    optimizer = torch.optim.Adam(pointer.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        scores = pointer(pooled, questions, answers)
        torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1])).backward()
        optimizer.step()
    assert pointer(pooled, questions, answers).argmax(dim=1).tolist() == [0, 1]


def test_every_parameter_receives_a_finite_gradient(pointer: ColorPointer) -> None:
    """Distributed training waits for all of them."""
    questions = make_questions([], [("red", 1.0), ("blue", 0.5)])
    pointer(make_pooled(2), questions, ANSWERS).square().sum().backward()
    gradients = {name: p.grad for name, p in pointer.named_parameters()}
    assert [n for n, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert gradients["match_weight"].any() and gradients["color_weight"].any()


def test_a_region_matches_with_its_best_word_that_is_no_padding() -> None:
    questions = make_questions([("red", 1.0), ("red", -7.0)])
    matches = best_matches(questions)[0]
    assert matches[:2].tolist() == [1.0, -6.0]
    assert matches[2] == torch.finfo(matches.dtype).min
