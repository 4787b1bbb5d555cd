"""Prompts of questions: the question, followed by a mask token in place of the answer.

The boxes of the answer are labelled with the mask token (as in GLIP's released code,
data/datasets/pseudo_data.py). The format is the same without boxes (unlike there), so the answer
does not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import canonical_answer
from glipv2_d2.text.prompts import caption_prompt

_WORD = r"[a-z0-9][a-z0-9'-]*"
# One or two words on each side of "or".
_PAIR = rf"(?P<first>{_WORD}(?: {_WORD})?),? or (?:an? |the )?(?P<second>{_WORD}(?: {_WORD})?)"
# An answer follows "it". "This" may belong to a noun ("this car"), unless an article follows.
_CHOICE = re.compile(rf"(?:is|was) (?:it|(?:it|this|that) (?:an?|the)) {_PAIR}")
_SHORT_CHOICE = re.compile(
    rf"(?:is|are|was|were) (?:this|that|these|those) (?P<first>{_WORD}),? or (?P<second>{_WORD})"
)
# Words that are part of no answer: "is it raining or not?", "is it in Europe or Asia?".
_NO_ANSWER = re.compile(
    r"\b(?:a|an|the|any|anything|no|not|none|that|this|and|to|of|in|on|at|by|for|from|with)\b"
)


def question_prompt(question: str, mask_token: str, nouns: Sequence[Span] = ()) -> Prompt:
    """Build the prompt of a question with a masked answer and no labels.

    Args:
        nouns: character spans in the stripped question.

    >>> question_prompt("what is red? ", "[MASK]").text
    'what is red? [MASK]'
    """
    text = f"{question.strip()} {mask_token}"
    return Prompt(text, (), (), is_question=True, nouns=tuple(nouns))


def question_of(prompt: Prompt) -> str:
    """The question of a prompt of :func:`question_prompt`.

    >>> question_of(question_prompt("what is red?", "[MASK]"))
    'what is red?'
    """
    return prompt.text.rpartition(" ")[0]


def named_alternatives(question: str) -> tuple[str, str] | None:
    """The two answers that an English question "is it A or B?" names (our choice).

    None if it is not clear where A and B begin and end: both must have the same number of words,
    one or two. "Is there a cat or a dog?" expects yes or no.

    >>> named_alternatives("Is it day or night?")
    ('day', 'night')
    >>> named_alternatives("is this a red cup or a blue bowl?")
    ('red cup', 'blue bowl')
    >>> named_alternatives("is there a cat or a dog?"), named_alternatives("is it raining or not?")
    (None, None)
    >>> named_alternatives("is it red, green or blue?")
    >>> named_alternatives("is this car red or blue?")
    """
    text = " ".join(question.lower().split()).strip(" ?!.")
    match = _CHOICE.fullmatch(text) or _SHORT_CHOICE.fullmatch(text)
    if match is None:
        return None
    first, second = match["first"], match["second"]
    if len(first.split()) != len(second.split()) or _NO_ANSWER.search(f"{first} {second}"):
        return None
    return None if canonical_answer(first) == canonical_answer(second) else (first, second)


def answered_prompt(question: str, answer: str, phrases: Sequence[Sequence[Span]]) -> Prompt:
    """Build the prompt of a question and its answer; the answer is the last label.

    Args:
        phrases: for each label of the question, its character spans in the stripped question.

    >>> answered_prompt("what is on the mat?", "a cat", [[(11, 18)]]).phrases
    ['the mat', 'a cat']
    """
    question = question.strip()
    text = f"{question} {answer}"
    return caption_prompt(text, [*phrases, [(len(question) + 1, len(text))]])


def is_groundable(answer: str) -> bool:
    """Whether a region can match an answer: it is neither yes, no, nor a number.

    >>> [is_groundable(answer) for answer in ("Yes", "2", "two", "two dogs")]
    [False, False, False, True]
    """
    answer = canonical_answer(answer)
    return answer not in ("yes", "no") and not answer.isdecimal()


def mask_answer(prompt: Prompt, question: Prompt) -> Prompt | None:
    """Mask the answer of a prompt that is a question, with or without its answer.

    Labels of the answer become labels of the mask token.

    Args:
        prompt: the question and its answer, or the question alone.
        question: the prompt of :func:`question_prompt`.

    Returns:
        ``question`` with the labels of ``prompt``; None if ``prompt`` does not begin with it.

    >>> answered = answered_prompt("what is red?", "a car", [])
    >>> masked = mask_answer(answered, question_prompt("what is red?", "[MASK]"))
    >>> masked.text, masked.phrases
    ('what is red? [MASK]', ['[MASK]'])
    """
    end = question.text.rindex(" ")
    if prompt.text[:end] != question.text[:end] or not (prompt.text[end:] + " ")[0].isspace():
        return None
    mask_span = (end + 1, len(question.text))

    def move(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        # A span over question and answer, which no parser returns, is cut to the question.
        moved = [mask_span if start >= end else (start, min(stop, end)) for start, stop in spans]
        return tuple(dict.fromkeys(moved))

    return replace(
        question,
        spans=tuple(move(spans) for spans in prompt.spans),
        classes=prompt.classes,
    )
