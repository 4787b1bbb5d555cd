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

_CHOICE = re.compile(r"(?:is|are|was|were|does|do|did|has|have|can|could|will|would)\b", re.I)
_EXISTENCE = re.compile(r"\w+ (?:there|you|we|any)\b", re.I)
_ARTICLES = ("a", "an", "the")
# They end the alternative before "or": "is it day or night?".
_STOP_WORDS = {*_ARTICLES, "is", "are", "was", "were", "it", "this", "that", "these", "those"}


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
    """The two answers that an English question of the form "is ... A or B?" names (our choice).

    None of other questions, and where it is not clear how many words before "or" belong to A: both
    have equally many. "Is there a cat or a dog?" asks for yes or no.

    >>> named_alternatives("Is it day or night?")
    ('day', 'night')
    >>> named_alternatives("is this a red cup or a blue bowl?")
    ('red cup', 'blue bowl')
    >>> named_alternatives("is the man sitting or standing")
    ('sitting', 'standing')
    >>> named_alternatives("is there a cat or a dog?"), named_alternatives("what is red or blue?")
    (None, None)
    >>> named_alternatives("is the cat or the dog asleep?"), named_alternatives("is it red?")
    (None, None)
    """
    text = " ".join(question.strip().rstrip("?").lower().split())
    if not _CHOICE.match(text) or _EXISTENCE.match(text) or text.count(" or ") != 1:
        return None
    before, after = (part.replace(",", " ").split() for part in text.split(" or "))
    if after[0] in _ARTICLES:
        after = after[1:]
    first = before[-len(after) :] if after else []
    if not first or len(first) < len(after) or _STOP_WORDS.intersection(first):
        return None
    alternatives = " ".join(first), " ".join(after)
    is_choice = len(set(map(canonical_answer, alternatives))) == 2
    return alternatives if is_choice else None


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
