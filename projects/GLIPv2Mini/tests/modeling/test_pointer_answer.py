"""Answers by the class name of a region: a mixture of probabilities, and a spatial pointer."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from helpers.text_tasks import ANSWERING
from mini_models import NAMED, REGIONS, mini_model

from glipv2_d2.modeling.heads.answer import AnswerHead, LinearAnswerScores
from glipv2_d2.structures import TextFeatures
from glipv2_d2.text.answers import load_answers
from glipv2_mini.modeling.evidence_backbone import EVIDENCE_CHANNELS, FEATURE_CHANNELS
from glipv2_mini.modeling.pointer_answer import (
    AnswerPointer,
    ColorPointer,
    PointerAnswerHead,
    RegionCounter,
    level_kinds,
)
from glipv2_mini.modeling.region_text_tasks import RegionQuestionFeatures
from glipv2_mini.modeling.regions import Regions

ANSWERS = ["yes", "Dog", "cat", "apple"]
NAMES = ["apple", "cat", "dog"]
APPLE, CAT, DOG = range(3)
NAME_OF_ANSWER = (None, DOG, CAT, APPLE)
WIDTH, NUM_TOKENS, NUM_REGIONS = 6, 4, 3
NUM_CHANNELS = FEATURE_CHANNELS + EVIDENCE_CHANNELS


def silent_counter() -> RegionCounter:
    """A counter that adds nothing, for tests of the other parts."""
    counter = RegionCounter()
    torch.nn.init.zeros_(counter.presence_weight)
    torch.nn.init.zeros_(counter.count_weight)
    return counter


@pytest.fixture
def head() -> PointerAnswerHead:
    torch.manual_seed(0)
    return PointerAnswerHead(
        pointer=AnswerPointer(language_dim=WIDTH),
        counter=silent_counter(),
        color_pointer=ColorPointer(language_dim=WIDTH),
        names=NAMES,
        language_dim=WIDTH,
        answers=ANSWERS,
        scores=LinearAnswerScores(language_dim=WIDTH, answers=ANSWERS),
        weight=1.0,
    )


def make_questions(
    objects: list[list[tuple[int, float]]], mentioned: int | None = None
) -> RegionQuestionFeatures:
    """The same question about images with objects, each a class and an x coordinate.

    Args:
        mentioned: the class that regions match at the second token; others match no token.
    """
    num_questions = len(objects)
    boxes = torch.zeros(num_questions, NUM_REGIONS, 5)
    class_logits = torch.zeros(num_questions, NUM_REGIONS, len(NAMES))
    matches = torch.full((num_questions, NUM_REGIONS, NUM_TOKENS), -4.0)
    for i, of_image in enumerate(objects):
        for r, (name, x) in enumerate(of_image):
            boxes[i, r] = torch.tensor([x, 0.5, 0.1, 0.1, 0.9])
            class_logits[i, r, name] = 10.0
            if name == mentioned:
                matches[i, r, 1] = 4.0
    features = torch.zeros(num_questions, NUM_REGIONS, NUM_CHANNELS)
    hidden = torch.randn(1, NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    hidden = hidden.expand(num_questions, -1, -1)
    text = TextFeatures(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))
    regions = Regions(features, features, boxes, class_logits)
    return RegionQuestionFeatures(text, regions, matches)


def test_a_probability_mixes_the_own_score_and_the_pointer(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)], [(APPLE, 0.5)]])
    pooled = head.pool(questions.text)
    own = head.scores(pooled, ANSWERS).sigmoid()
    pointed = head.pointer(pooled, questions, among=[APPLE, CAT, DOG])
    pointer_weight = pointed.logits.sigmoid()
    expected = torch.stack(
        [
            (1 - pointer_weight) * own[:, a]
            + (0 if name is None else pointer_weight * pointed.probabilities[:, name])
            for a, name in enumerate(NAME_OF_ANSWER)
        ],
        dim=1,
    )
    torch.testing.assert_close(head.logits(questions, ANSWERS).sigmoid(), expected)


def test_names_that_are_not_choices_get_no_probability(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[(APPLE, 0.5)]])
    probabilities = head.pointer(
        head.pool(questions.text), questions, among=[CAT, DOG]
    ).probabilities
    torch.testing.assert_close(probabilities, torch.full((1, 2), 0.5))


def test_choices_without_a_class_name_get_the_scores_of_the_plain_head(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[(DOG, 0.2)]])
    plain = AnswerHead.logits(head, questions, ["yes"])
    assert torch.equal(head.logits(questions, ["yes"]), plain)


def test_answers_of_one_kind_get_its_best_score() -> None:
    answers = ["Yes", "dog", "2", "no", "red", "12", "grey", "cat"]
    scores = torch.tensor([[1.0, 5, 3, 2, -1, 4, -3, 6], [2.0, 0, 3, 1, -4, 1, -2, 7]])
    expected = torch.tensor([[2.0, 5, 4, 2, -1, 4, -1, 6], [2.0, 0, 3, 2, -2, 3, -2, 7]])
    assert torch.equal(level_kinds(scores, answers), expected)


def test_answers_of_no_kind_keep_their_scores() -> None:
    scores = torch.tensor([[1.0, 2, 3]])
    assert torch.equal(level_kinds(scores, ["dog", "left", "yes"]), scores)
    assert level_kinds(scores[:, :0], []).shape == (1, 0)


def test_the_own_score_does_not_choose_between_yes_and_no() -> None:
    """Even if it prefers one of them by far: the regions choose."""
    torch.manual_seed(0)
    answers = ["yes", "no", "dog"]
    head = PointerAnswerHead(
        pointer=AnswerPointer(language_dim=WIDTH),
        counter=RegionCounter(),
        color_pointer=ColorPointer(language_dim=WIDTH),
        names=NAMES,
        language_dim=WIDTH,
        answers=answers,
        scores=lambda pooled, answers: torch.tensor([[0.0, 20.0, -20.0]]).expand(len(pooled), -1),
        weight=1.0,
    )
    questions = make_questions([[(DOG, 0.2)], [(CAT, 0.2)]], mentioned=DOG)
    assert [answer for answer, _ in head.predict(questions, [None] * 2)] == ["yes", "no"]


def test_class_names_join_the_answers_of_a_text_classifier() -> None:
    opts = (*ANSWERING, *NAMED, "MODEL.ANSWER.NAME", "PointerAnswerHead")
    model = mini_model(
        *opts, "MODEL.ANSWER.CLASSIFIER", "text", "MODEL.ANSWER.ANSWERS", ["yes", "Cat"]
    )
    names = load_answers("package:glipv2_mini/assets/mini_names.txt")
    assert model.text_tasks.answer.answers == (
        "yes",
        "Cat",
        *(name for name in names if name != "cat"),
    )


def test_answers_without_a_class_name_raise() -> None:
    with pytest.raises(
        ValueError, match="none of the 2 answers is one of the .* class names.*'abal"
    ):
        mini_model(
            *(*ANSWERING, *NAMED, "MODEL.ANSWER.NAME", "PointerAnswerHead"),
            *("MODEL.ANSWER.ANSWERS", ["yes", "no"]),
        )


def test_a_copy_gives_the_same_logits(head: PointerAnswerHead) -> None:
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)]])
    expected = head.logits(questions, ANSWERS)
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(copied.logits(questions, ANSWERS), expected)


def test_probabilities_follow_the_regions_among_the_choices(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)], [(APPLE, 0.5)]])
    among = [APPLE, CAT, DOG]
    probabilities = head.pointer(head.pool(questions.text), questions, among).probabilities
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert probabilities[0, APPLE] < 1e-6 and probabilities[1, APPLE] > 1 - 1e-6


def test_an_image_without_regions_gets_the_scores_of_the_plain_head(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[]])
    plain = AnswerHead.logits(head, questions, ANSWERS)
    torch.testing.assert_close(head.logits(questions, ANSWERS), plain)


def test_the_mentioned_region_is_found_among_two(head: PointerAnswerHead) -> None:
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)], [(CAT, 0.2), (DOG, 0.8)]], mentioned=CAT)
    mentioned = head.pointer.mentioned_regions(questions)
    torch.testing.assert_close(mentioned[:, 2], torch.zeros(2))
    assert mentioned[0, 1] > mentioned[0, 0] and mentioned[1, 0] > mentioned[1, 1]


def test_training_finds_the_object_left_of_the_mentioned_one(head: PointerAnswerHead) -> None:
    """The text is the same: the answer depends on boxes and matches only."""
    scenes = [
        [(DOG, 0.1), (CAT, 0.5), (APPLE, 0.9)],
        [(APPLE, 0.1), (CAT, 0.5), (DOG, 0.9)],
        [(APPLE, 0.1), (DOG, 0.3), (CAT, 0.6)],
        [(CAT, 0.9), (DOG, 0.1), (APPLE, 0.7)],
    ]
    left = ["Dog", "apple", "Dog", "apple"]
    questions = make_questions(scenes, mentioned=CAT)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        head.losses([questions], [{answer: 1.0} for answer in left])["loss_answer"].backward()
        optimizer.step()
    assert [answer for answer, _ in head.predict(questions, [None] * 4)] == left
    moved = make_questions([[(APPLE, 0.2), (CAT, 0.5), (DOG, 0.8)]], mentioned=CAT)
    assert head.predict(moved, [["cat", "apple", "dog"]])[0].answer == "apple"


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_padding_has_no_influence(head: PointerAnswerHead, garbage: float) -> None:
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)]], mentioned=DOG)
    mask = torch.tensor([[True, True, True, False]])
    logits = []
    for value in (0.0, garbage):
        hidden, matches = questions.text.hidden.clone(), questions.region_word_logits.clone()
        hidden[:, 3:], matches[:, :, 3:] = value, value
        padded = replace(questions, text=TextFeatures(hidden, mask), region_word_logits=matches)
        logits.append(head.logits(padded, ANSWERS))
    assert torch.equal(*logits)


def test_no_question_gives_a_loss_of_0_with_gradients(head: PointerAnswerHead) -> None:
    loss = head.losses([make_questions([])], [])["loss_answer"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_gradients_are_finite_for_certain_names_and_without_regions(
    head: PointerAnswerHead,
) -> None:
    questions = make_questions([[(DOG, 0.2)], []])
    questions.regions.class_logits.mul_(1000)
    head.losses([questions], [{"cat": 1.0}, {"dog": 1.0}])["loss_answer"].backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_every_parameter_receives_a_finite_gradient() -> None:
    torch.manual_seed(0)
    answers = ["yes", "no", "2", "3", "red", "blue", "cat", "dog"]
    head = PointerAnswerHead(
        pointer=AnswerPointer(language_dim=WIDTH),
        counter=RegionCounter(),
        color_pointer=ColorPointer(language_dim=WIDTH),
        names=NAMES,
        language_dim=WIDTH,
        answers=answers,
        scores=LinearAnswerScores(language_dim=WIDTH, answers=answers),
        weight=1.0,
    )
    questions = make_questions([[(DOG, 0.2), (CAT, 0.8)]] * 4 + [[]], mentioned=DOG)
    targets = [{"yes": 1.0}, {"2": 1.0}, {"red": 1.0}, {"cat": 1.0}, {"no": 1.0}]
    head.losses([questions], targets)["loss_answer"].backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    assert [n for n, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []


def test_regions_without_class_logits_raise(head: PointerAnswerHead) -> None:
    questions = make_questions([[(DOG, 0.2)]])
    regions = replace(questions.regions, class_logits=None)
    with pytest.raises(ValueError, match="PointerAnswerHead needs regions with class logits"):
        head.logits(replace(questions, regions=regions), ANSWERS)


@pytest.mark.parametrize("regions", [(), REGIONS], ids=["no regions", "no names"])
def test_a_model_without_class_names_raises(regions: tuple) -> None:
    with pytest.raises(
        ValueError, match=r"RegionTextTasks and MODEL\.REGION_ENCODER\.NAMES_FILE, or choose"
    ):
        mini_model(*ANSWERING, *regions, "MODEL.ANSWER.NAME", "PointerAnswerHead")
