from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.structures import Prompt
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.questions import (
    answered_prompt,
    mask_answer,
    named_alternatives,
    question_of,
    question_prompt,
)
from glipv2_d2.text.tokenizer import Tokenizer

MASK = "[MASK]"
TEXTS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=12)


def masked_answer(caption: Prompt, question: str) -> Prompt | None:
    return mask_answer(caption, question_prompt(question, MASK))


def test_the_answer_is_one_mask_token() -> None:
    tokenizer = Tokenizer()
    tokens = tokenizer([question_prompt("what is red?", tokenizer.mask_token)])
    assert tokens.input_ids[0, -2] == tokenizer.mask_token_id
    assert tokenizer.count("what is red?") + 3 == tokens.input_ids.shape[1]


def test_labels_of_the_answer_become_labels_of_the_mask_token() -> None:
    """ "red" is in the answer; "the dog ... red ball" has spans in both."""
    question = "what is left of the dog?"
    text = f"{question} a red ball"
    spans = [[(16, 23)], [(25, 35)], [(27, 30)], [(16, 23), (31, 35)]]
    assert [text[a:b] for ((a, b), *_) in spans] == ["the dog", "a red ball", "red", "the dog"]
    masked = masked_answer(caption_prompt(text, spans), question)
    assert masked.text == question_prompt(question, MASK).text
    assert masked.phrases == ["the dog", MASK, MASK, f"the dog {MASK}"]
    assert masked.is_question


def test_masked_labels_have_the_right_tokens() -> None:
    tokenizer = Tokenizer()
    answered = answered_prompt("what is on the mat?", "a very long answer", [[(11, 18)]])
    tokens = tokenizer([masked_answer(answered, "what is on the mat?")])
    ids = tokens.input_ids[0]
    assert ids[tokens.positive_maps[0][1]].tolist() == [tokenizer.mask_token_id]
    assert ids[tokens.positive_maps[0][0]].tolist() == tokenizer.encode(["the mat"])[0]


def test_a_question_without_answer_keeps_its_labels() -> None:
    prompt = caption_prompt("is there a dog?", [[(9, 14)]])
    masked = masked_answer(prompt, " is there a dog? ")
    assert (masked.spans, masked.classes) == (prompt.spans, prompt.classes)
    assert masked.text == "is there a dog? [MASK]"


def test_nouns_of_a_question_have_tokens() -> None:
    question = question_prompt("is there a traffic light?", MASK, [(11, 24)])
    masked = mask_answer(caption_prompt("is there a traffic light? yes", [[(26, 29)]]), question)
    tokenizer = Tokenizer()
    for prompt in (question, masked):
        tokens = tokenizer([prompt])
        (noun,) = tokens.noun_maps[0]
        assert tokens.input_ids[0, noun].tolist() == tokenizer.encode(["traffic light"])[0]


def test_another_prompt_has_no_masked_answer() -> None:
    assert masked_answer(caption_prompt("cat. dog", [[(0, 3)]]), "what is red?") is None
    assert masked_answer(caption_prompt("whatever", [[(0, 8)]]), "what") is None


@given(TEXTS, TEXTS)
def test_the_answer_is_the_last_label(question: str, answer: str) -> None:
    prompt = answered_prompt(question, answer, [[(0, 1)]])
    assert prompt.phrases == [question[0], answer]
    assert masked_answer(prompt, question).phrases == [question[0], MASK]


NAMED = {
    "Is it day or night?": ("day", "night"),
    "is it day or night.": ("day", "night"),
    "is it  Day, or night ?!": ("day", "night"),
    "is this a cat, or a dog?": ("cat", "dog"),
    "is that the front or the back": ("front", "back"),
    "was it a red cup or a blue bowl?": ("red cup", "blue bowl"),
    "is it hot dogs or french fries?": ("hot dogs", "french fries"),
    "are these apples or oranges?": ("apples", "oranges"),
    "is this 1 or 2?": ("1", "2"),
}


@pytest.mark.parametrize("question", NAMED)
def test_a_question_names_its_alternatives(question: str) -> None:
    assert named_alternatives(question) == NAMED[question]


@pytest.mark.parametrize(
    "question",
    [
        # Yes or no.
        "is there a cat or a dog?",
        "do you see a cat or a dog?",
        "is anything red or blue?",
        "can I see a cat or a dog?",
        "does the man have a beard or mustache?",
        "is it possible to see cats or dogs?",
        "is it any cat or dog?",
        "is it raining or not?",
        # Three.
        "is it red, blue or green?",
        "is it red or blue or green?",
        "is this a cat, a dog or a horse?",
        "is the animal a cat, dog or bird?",
        # It is not clear where an answer begins or ends.
        "is this a cat or a hot dog?",
        "is it red or dark blue?",
        "is this car red or blue?",
        "is the car red or dark blue?",
        "is the man standing or sitting down?",
        "is the cat or the dog asleep?",
        "is this in Europe or North America?",
        "is this a picture of cats or dogs?",
        "is it black and white or color?",
        "is it true or false that it rains?",
        # No answers.
        "is it red or red?",
        "is it red or",
        "is it or red?",
        "is the face \U0001f600 or \U0001f603?",
        "is it ... or !!!?",
        "how many cats or dogs are there?",
        "what is red or blue?",
        "what is it?",
        "",
    ],
)
def test_other_questions_name_no_alternatives(question: str) -> None:
    assert named_alternatives(question) is None


WORDS = st.sampled_from(["is", "or", "it", "a", "the", "red", "day", "or,", "?", "there"])


@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_alternatives_are_two_different_parts_of_the_question(question: str) -> None:
    alternatives = named_alternatives(question)
    if alternatives is not None:
        first, second = alternatives
        assert first != second
        words = question.lower().replace(",", " ").replace("?", " ").split()
        assert set(first.split()) | set(second.split()) <= set(words)


def test_the_question_of_its_prompt() -> None:
    assert question_of(question_prompt(" is it red or blue?", MASK)) == "is it red or blue?"
