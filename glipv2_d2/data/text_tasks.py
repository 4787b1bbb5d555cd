"""Records that ask for words: a question to be answered, an image to be described.

Their keys are said in :mod:`glipv2_d2.structures.fields`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glipv2_d2.data.caption_text import swap_sides
from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import canonical_answer

# An answer that so many people gave is right, as in the VQA challenge.
ENOUGH_PEOPLE = 3

EVALUATION_KEYS = (fields.HUMAN_ANSWERS, fields.ANSWER_TYPE, fields.QUESTION_TYPE)
"""Of a record; evaluators read them from the data set, and no model sees them."""


def is_text_task(record: Record) -> bool:
    """Whether a record asks for words, be it beside boxes."""
    return fields.QUESTION in record or fields.TARGET_CAPTIONS in record


def asks_words_only(record: Record) -> bool:
    """Whether nothing in the image is to be found."""
    return is_text_task(record) and "annotations" not in record


def has_words(text: Any) -> bool:
    """Whether something is a text that is not blank; a file may have anything in its place."""
    return isinstance(text, str) and bool(text.strip())


def task_faults(record: Record) -> list[str]:
    """What is wrong with the words of a record, as kinds of :data:`MEANING`; nothing: it is sound.

    What is not there is no fault: test sets have neither answers nor captions.
    """
    faults = []
    if fields.QUESTION in record:
        if not has_words(record[fields.QUESTION]):
            faults.append("empty-question")
        if fields.QUESTION_ID not in record:
            faults.append("no-question-id")
        if not _are_scores(record.get(fields.ANSWERS, {})):
            faults.append("no-answer-scores")
    captions = record.get(fields.TARGET_CAPTIONS, [])
    if not isinstance(captions, list | tuple):
        faults.append("no-caption-list")
    elif not all(map(has_words, captions)):
        faults.append("empty-target-caption")
    return faults


def _are_scores(answers: Any) -> bool:
    return isinstance(answers, Mapping) and all(
        isinstance(answer, str) and isinstance(score, int | float) and 0 <= score <= 1
        for answer, score in answers.items()
    )


MEANING = {
    "empty-question": "the question has no words: give it some, or take it out",
    "no-question-id": "the question has no question_id, by which its answer is known",
    "no-answer-scores": "the answers are no scores by answer: write them as {'yes': 1.0}, 0 to 1",
    "no-caption-list": "target_captions is no list of captions: write it as ['a cat on a mat']",
    "empty-target-caption": "one of its captions has no words: give it some, or take it out",
}


def check_text_task(record: Record, *, is_train: bool) -> None:
    """Raise where a record's words cannot be used.

    Raises:
        ValueError: a question or caption has no words, a question has no id, answers or captions
            are of another form, or in training there is nothing to learn.
    """
    faults = [MEANING[fault] for fault in task_faults(record)]
    if is_train and fields.QUESTION in record and fields.ANSWERS not in record:
        faults.append("it has no answers, as in a test set; there is nothing to learn from it")
    if is_train and record.get(fields.TARGET_CAPTIONS) == []:
        faults.append("it has no captions, as in a test set; there is nothing to learn from it")
    if faults:
        raise ValueError(f"{place_of(record)}: {faults[0]}")


def place_of(record: Record) -> str:
    """A record in a message: its question, image and data set."""
    place = f"image {record.get(fields.FILE_NAME)!r}"
    if fields.QUESTION in record:
        place = f"question {record.get(fields.QUESTION_ID)!r} of {place}"
    dataset = record.get(fields.DATASET_NAME)
    return f"data set {dataset!r}, {place}" if dataset else place


def mirrored(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the mirrored image: "left" and "right" change places in its words.

    >>> mirrored({"question": "what is left of the cat?", "answers": {"left shoe": 1.0}})
    {'question': 'what is right of the cat?', 'answers': {'right shoe': 1.0}}
    """
    changed = dict(record)
    if fields.QUESTION in record:
        changed[fields.QUESTION] = _swap(record[fields.QUESTION])
    if fields.ANSWERS in record:
        answers = record[fields.ANSWERS].items()
        changed[fields.ANSWERS] = {_swap(answer): score for answer, score in answers}
    if fields.TARGET_CAPTIONS in record:
        changed[fields.TARGET_CAPTIONS] = [_swap(text) for text in record[fields.TARGET_CAPTIONS]]
    return changed


def _swap(text: str) -> str:
    return swap_sides(text, ())[0]


def soft_scores(human_answers: Sequence[str]) -> dict[str, float]:
    """What each answer is worth: the share of three people who gave it, at most 1.

    Answers are counted in their canonical spelling. Where fewer than three people were asked, it is
    the share of all of them (our choice: a set with one answer each has hard targets).

    >>> soft_scores(["Two", "2", "a few", "2.", "3"])
    {'2': 1.0, 'few': 0.3333333333333333, '3': 0.3333333333333333}
    """
    counts = Counter(canonical_answer(answer) for answer in human_answers)
    del counts[""]
    enough = min(ENOUGH_PEOPLE, len(human_answers))
    return {answer: min(1.0, count / enough) for answer, count in counts.items()}
