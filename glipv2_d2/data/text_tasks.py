"""Records with text tasks: a question to answer, or captions of the image.

:mod:`glipv2_d2.structures.fields` describes their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glipv2_d2.data.caption_transforms import swap_left_right
from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import canonical_answer

# The score of an answer that 0, 1, 2 ... of ten people gave, as in the VQA challenge; more: 1.
SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)

EVALUATION_KEYS = (
    fields.HUMAN_ANSWERS,
    fields.MOST_COMMON_ANSWER,
    fields.ANSWER_TYPE,
    fields.QUESTION_TYPE,
)
"""Keys that only evaluators use; they take them from the dataset, so inputs do not have them."""


def is_nonempty_string(value: Any) -> bool:
    """Whether a value of any type is a string with a character that is not whitespace."""
    return isinstance(value, str) and bool(value.strip())


def task_faults(record: Record) -> list[str]:
    """The faults of a record's question, answers and captions, as keys of :data:`FAULT_MESSAGES`.

    Missing answers or captions are no fault: a test set has none.
    """
    faults = []
    if fields.QUESTION in record:
        if not is_nonempty_string(record[fields.QUESTION]):
            faults.append("empty-question")
        if fields.QUESTION_ID not in record:
            faults.append("no-question-id")
        if not _are_scores(record.get(fields.ANSWERS, {})):
            faults.append("invalid-answer-scores")
    captions = record.get(fields.TARGET_CAPTIONS, [])
    if not isinstance(captions, list | tuple):
        faults.append("invalid-caption-list")
    elif not all(map(is_nonempty_string, captions)):
        faults.append("empty-target-caption")
    return faults


def _are_scores(answers: Any) -> bool:
    return isinstance(answers, Mapping) and all(
        isinstance(answer, str) and isinstance(score, int | float) and 0 <= score <= 1
        for answer, score in answers.items()
    )


FAULT_MESSAGES = {
    "empty-question": "the question is empty: write one, or remove it",
    "no-question-id": "the question has no question_id, which identifies its answer",
    "invalid-answer-scores": "the answers are not scores by answer: write them as {'yes': 1.0}, "
    "each from 0 to 1",
    "invalid-caption-list": "target_captions is not a list of captions: write it as "
    "['a cat on a mat']",
    "empty-target-caption": "one of its captions is empty: write one, or remove it",
}


def check_text_task(record: Record, *, is_train: bool) -> None:
    """Raise an error if the text fields of a record are unusable.

    Raises:
        ValueError: a question or caption is empty, a question has no id, answers or captions have
            the wrong type, or a training record has no answers or captions.
    """
    faults = [FAULT_MESSAGES[fault] for fault in task_faults(record)]
    if is_train and fields.QUESTION in record and fields.ANSWERS not in record:
        faults.append("it has no answers, as in a test set, so it cannot be trained on")
    if is_train and record.get(fields.TARGET_CAPTIONS) == []:
        faults.append("it has no captions, as in a test set, so it cannot be trained on")
    if faults:
        raise ValueError(f"{describe_record(record)}: {faults[0]}")


def describe_record(record: Record) -> str:
    """A record's dataset, question and image, for messages."""
    place = f"image {record.get(fields.FILE_NAME)!r}"
    if fields.QUESTION in record:
        place = f"question {record.get(fields.QUESTION_ID)!r} of {place}"
    dataset = record.get(fields.DATASET_NAME)
    return f"dataset {dataset!r}, {place}" if dataset else place


def mirror_text_fields(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of the record for its mirrored image: swaps "left" and "right" in the text fields.

    >>> mirror_text_fields({"question": "what is left of the cat?", "answers": {"left shoe": 1.0}})
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
    return swap_left_right(text, ())[0]


def soft_scores(human_answers: Sequence[str]) -> dict[str, float]:
    """The soft score of each answer: 0.3, 0.6, 0.9 and 1 for one, two, three and more people.

    These are FIBER's targets (write_vqa.py). Answers are counted in their canonical spelling. With
    fewer than four answers, the score is the share of people (our choice: a dataset with one answer
    per question has hard targets).

    >>> soft_scores(["Two", "2", "a few", "2.", "3"])
    {'2': 0.9, 'few': 0.3, '3': 0.3}
    """
    counts = Counter(canonical_answer(answer) for answer in human_answers)
    del counts[""]
    if len(human_answers) < len(SCORES) - 1:
        return {answer: count / len(human_answers) for answer, count in counts.items()}
    return {answer: SCORES[min(count, len(SCORES) - 1)] for answer, count in counts.items()}
