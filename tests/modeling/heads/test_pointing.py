"""Answers by the name of a region: a mixture of probabilities, and a pointer that learns places."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_model
from helpers.text_tasks import ANSWERING, REGIONS

from glipv2_d2.modeling.heads.answer import AnswerHead, ListedScores
from glipv2_d2.modeling.heads.pointing import AnswerPointer, PointingAnswerHead
from glipv2_d2.structures import ReadQuestions, Regions, TextFeatures
from glipv2_d2.text.answers import read_answers

NAMED = (
    *(*REGIONS, "MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
    *("MODEL.GROUNDING.FUSED_WORDS", False),
    *("MODEL.REGION_READER.NAMES_FILE", "package:glipv2_d2/assets/mini_names.txt"),
)
ANSWERS = ["yes", "Dog", "cat", "apple"]
NAMES = ["apple", "cat", "dog"]
APPLE, CAT, DOG = range(3)
NAME_OF_ANSWER = (None, DOG, CAT, APPLE)
WIDTH, NUM_CHANNELS, NUM_TOKENS, NUM_REGIONS = 6, 5, 4, 3


@pytest.fixture
def head() -> PointingAnswerHead:
    torch.manual_seed(0)
    return PointingAnswerHead(
        pointer=AnswerPointer(language_dim=WIDTH),
        names=NAMES,
        language_dim=WIDTH,
        answers=ANSWERS,
        scores=ListedScores(language_dim=WIDTH, answers=ANSWERS),
        weight=1.0,
    )


def asked(things: list[list[tuple[int, float]]], named: int | None = None) -> ReadQuestions:
    """The same words, asked of images with things of a name at a place from left to right.

    Args:
        named: the name that regions match at the second word; the others match nothing.
    """
    num_questions = len(things)
    places = torch.zeros(num_questions, NUM_REGIONS, 5)
    name_logits = torch.zeros(num_questions, NUM_REGIONS, len(NAMES))
    matches = torch.full((num_questions, NUM_REGIONS, NUM_TOKENS), -4.0)
    for i, of_image in enumerate(things):
        for r, (name, x) in enumerate(of_image):
            places[i, r] = torch.tensor([x, 0.5, 0.1, 0.1, 0.9])
            name_logits[i, r, name] = 10.0
            if name == named:
                matches[i, r, 1] = 4.0
    features = torch.zeros(num_questions, NUM_REGIONS, NUM_CHANNELS)
    hidden = torch.randn(1, NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    words = hidden.expand(num_questions, -1, -1)
    language = TextFeatures(words, torch.ones(words.shape[:2], dtype=torch.bool))
    return ReadQuestions(language, Regions(features, features, places, name_logits), matches)


def test_a_probability_is_a_mixture_of_the_own_one_and_that_of_the_name(
    head: PointingAnswerHead,
) -> None:
    questions = asked([[(DOG, 0.2), (CAT, 0.8)], [(APPLE, 0.5)]])
    pooled = head.pool(questions.language)
    own = head.scores(pooled, ANSWERS).sigmoid()
    named = head.pointer(pooled, questions, among=[APPLE, CAT, DOG])
    share_of_naming = named.logits.sigmoid()
    expected = torch.stack(
        [
            (1 - share_of_naming) * own[:, a]
            + (0 if name is None else share_of_naming * named.shares[:, name])
            for a, name in enumerate(NAME_OF_ANSWER)
        ],
        dim=1,
    )
    torch.testing.assert_close(head.logits(questions, ANSWERS).sigmoid(), expected)


def test_names_that_are_no_answers_take_nothing_from_those_that_are(
    head: PointingAnswerHead,
) -> None:
    questions = asked([[(APPLE, 0.5)]])
    shares = head.pointer(head.pool(questions.language), questions, among=[CAT, DOG]).shares
    torch.testing.assert_close(shares, torch.full((1, 2), 0.5))


def test_choices_without_a_name_get_the_answers_of_the_plain_head(head: PointingAnswerHead) -> None:
    questions = asked([[(DOG, 0.2)]])
    plain = AnswerHead.logits(head, questions, ["yes"])
    assert torch.equal(head.logits(questions, ["yes"]), plain)


def test_names_are_answers_too_where_these_are_matched_by_their_text() -> None:
    opts = (*ANSWERING, *NAMED, "MODEL.ANSWER.NAME", "PointingAnswerHead")
    model = tiny_model(*opts, "MODEL.ANSWER.SCORE", "words", "MODEL.ANSWER.ANSWERS", ["yes", "Cat"])
    names = read_answers("package:glipv2_d2/assets/mini_names.txt")
    assert model.answer.answers == ("yes", "Cat", *(name for name in names if name != "cat"))


def test_answers_of_which_none_is_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 answers is one of the .* names of .*'abal"):
        tiny_model(
            *(*ANSWERING, *NAMED, "MODEL.ANSWER.NAME", "PointingAnswerHead"),
            *("MODEL.ANSWER.ANSWERS", ["yes", "no"]),
        )


def test_a_copy_answers_as_the_head_does(head: PointingAnswerHead) -> None:
    questions = asked([[(DOG, 0.2), (CAT, 0.8)]])
    expected = head.logits(questions, ANSWERS)
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(copied.logits(questions, ANSWERS), expected)


def test_names_are_those_of_the_regions_as_far_as_these_are_asked_for(
    head: PointingAnswerHead,
) -> None:
    questions = asked([[(DOG, 0.2), (CAT, 0.8)], [(APPLE, 0.5)]])
    among = [APPLE, CAT, DOG]
    shares = head.pointer(head.pool(questions.language), questions, among).shares
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    assert shares[0, APPLE] < 1e-6 and shares[1, APPLE] > 1 - 1e-6


def test_an_image_without_regions_gets_the_answers_of_the_plain_head(
    head: PointingAnswerHead,
) -> None:
    questions = asked([[]])
    plain = AnswerHead.logits(head, questions, ANSWERS)
    torch.testing.assert_close(head.logits(questions, ANSWERS), plain)


def test_of_two_things_the_named_one_is_told_from_the_other(head: PointingAnswerHead) -> None:
    questions = asked([[(DOG, 0.2), (CAT, 0.8)], [(CAT, 0.2), (DOG, 0.8)]], named=CAT)
    named = head.pointer.named(questions)
    torch.testing.assert_close(named[:, 2], torch.zeros(2))
    assert named[0, 1] > named[0, 0] and named[1, 0] > named[1, 1]


def test_the_loss_teaches_what_is_left_of_the_named_thing(head: PointingAnswerHead) -> None:
    """The words are the same: only places and the match tell what is asked for."""
    scenes = [
        [(DOG, 0.1), (CAT, 0.5), (APPLE, 0.9)],
        [(APPLE, 0.1), (CAT, 0.5), (DOG, 0.9)],
        [(APPLE, 0.1), (DOG, 0.3), (CAT, 0.6)],
        [(CAT, 0.9), (DOG, 0.1), (APPLE, 0.7)],
    ]
    left = ["Dog", "apple", "Dog", "apple"]
    questions = asked(scenes, named=CAT)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        head([questions], [{answer: 1.0} for answer in left])["loss_answer"].backward()
        optimizer.step()
    assert [guess.answer for guess in head.guess(questions, [None] * 4)] == left
    moved = asked([[(APPLE, 0.2), (CAT, 0.5), (DOG, 0.8)]], named=CAT)
    assert head.guess(moved, [["cat", "apple", "dog"]])[0].answer == "apple"


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_padding_changes_nothing(head: PointingAnswerHead, garbage: float) -> None:
    questions = asked([[(DOG, 0.2), (CAT, 0.8)]], named=DOG)
    mask = torch.tensor([[True, True, True, False]])
    logits = []
    for value in (0.0, garbage):
        hidden, matches = questions.language.hidden.clone(), questions.matches.clone()
        hidden[:, 3:], matches[:, :, 3:] = value, value
        padded = replace(questions, language=TextFeatures(hidden, mask), matches=matches)
        logits.append(head.logits(padded, ANSWERS))
    assert torch.equal(*logits)


def test_no_question_costs_nothing_and_reaches_every_weight(head: PointingAnswerHead) -> None:
    loss = head([asked([])], [])["loss_answer"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_gradients_are_finite_where_a_name_is_sure_or_no_thing_is_there(
    head: PointingAnswerHead,
) -> None:
    questions = asked([[(DOG, 0.2)], []])
    questions.regions.name_logits.mul_(1000)
    head([questions], [{"cat": 1.0}, {"dog": 1.0}])["loss_answer"].backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_regions_that_were_compared_with_no_name_are_refused(head: PointingAnswerHead) -> None:
    questions = asked([[(DOG, 0.2)]])
    with pytest.raises(ValueError, match="PointingAnswerHead needs regions that were compared"):
        head.logits(replace(questions, regions=None), ANSWERS)


@pytest.mark.parametrize("regions", [(), REGIONS], ids=["no regions", "no names"])
def test_a_model_that_compares_no_regions_with_names_is_refused(regions: tuple) -> None:
    with pytest.raises(ValueError, match="set MODEL.REGION_READER.NAME and NAMES_FILE, or choose"):
        tiny_model(*ANSWERING, *regions, "MODEL.ANSWER.NAME", "PointingAnswerHead")
