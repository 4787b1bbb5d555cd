"""The answer vocabulary, and answers that ignore the image."""

from __future__ import annotations

from typing import Any

import pytest

from glipv2_d2.data.answer_vocabulary import (
    best_answer_in_vocabulary,
    build_vocabulary,
    most_common_answers,
    prior_answers,
)
from glipv2_d2.data.text_tasks import soft_scores


def question(*human_answers: str, kind: str | None = None) -> dict[str, Any]:
    record = {
        "question_id": 1,
        "file_name": "1.jpg",
        "human_answers": list(human_answers),
        "answers": soft_scores(human_answers),
    }
    return record | ({"question_type": kind} if kind else {})


RECORDS = [
    question("Two", "2", "3"),
    question("2"),
    question("yes", "yes", "no"),
    question("the yes"),
    question("no"),
    question("a"),
]


def test_answer_is_counted_once_per_question_as_its_majority_answer() -> None:
    assert build_vocabulary(RECORDS, 2) == ["2", "yes"]
    assert build_vocabulary(RECORDS, 1) == ["2", "yes", "a", "no"]


def test_the_most_common_answer_of_the_file_is_counted() -> None:
    record = {**question("yes", "yes", "no"), "multiple_choice_answer": "The No."}
    assert build_vocabulary([record], 1) == ["no"]


def test_vocabulary_does_not_depend_on_record_order() -> None:
    assert build_vocabulary(RECORDS[::-1], 1) == build_vocabulary(RECORDS, 1)


def test_too_high_min_occurrences_raise() -> None:
    with pytest.raises(ValueError, match="answer of 3 questions; the most frequent is that of 2"):
        build_vocabulary(RECORDS, 3)


def test_questions_without_answers_raise() -> None:
    with pytest.raises(ValueError, match=r"question 7 of image '7\.jpg'"):
        build_vocabulary([{"question_id": 7, "file_name": "7.jpg"}], 1)


def test_best_answer_in_vocabulary() -> None:
    record = question("red", "red", "blue", "green")
    assert best_answer_in_vocabulary(record, frozenset({"red", "blue"})) == "red"
    assert best_answer_in_vocabulary(record, frozenset({"blue"})) == "blue"
    assert best_answer_in_vocabulary(record, frozenset({"pink"})) == ""


def test_prior_depends_on_the_question_type_only() -> None:
    train = [
        *(
            question("yes", kind="is it"),
            question("yes", kind="is it"),
            question("no", kind="is it"),
        ),
        question("2", kind="how many"),
        question("blue"),
    ]
    assert most_common_answers(train) == {"is it": "yes", "how many": "2", "all": "blue"}
    questions = [
        question("no", kind="is it"),
        question("5", kind="how many"),
        question("x", kind="why"),
    ]
    assert prior_answers(train, questions) == ["yes", "2", ""]
