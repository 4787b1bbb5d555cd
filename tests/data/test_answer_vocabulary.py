"""Lists of answers and what they reach."""

from __future__ import annotations

from typing import Any

import pytest

from glipv2_d2.data.answer_vocabulary import (
    build_vocabulary,
    commonest_answers,
    prior_answers,
    reachable_answer,
    unlikely_answers,
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


def test_an_answer_counts_once_for_each_question_whose_best_one_it_is() -> None:
    assert build_vocabulary(RECORDS, 2) == ["2", "yes"]
    assert build_vocabulary(RECORDS, 1) == ["2", "yes", "a", "no"]


def test_the_order_of_the_questions_does_not_matter() -> None:
    assert build_vocabulary(RECORDS[::-1], 1) == build_vocabulary(RECORDS, 1)


def test_an_answer_that_nobody_gave_often_enough_is_named() -> None:
    with pytest.raises(ValueError, match="that of 3 questions; the commonest is that of 2"):
        build_vocabulary(RECORDS, 3)


def test_questions_without_answers_are_named() -> None:
    with pytest.raises(ValueError, match=r"question 7 of image '7\.jpg'"):
        build_vocabulary([{"question_id": 7, "file_name": "7.jpg"}], 1)


def test_the_best_answer_of_a_list() -> None:
    asked = question("red", "red", "blue", "green")
    assert reachable_answer(asked, frozenset({"red", "blue"})) == "red"
    assert reachable_answer(asked, frozenset({"blue"})) == "blue"
    assert reachable_answer(asked, frozenset({"pink"})) == ""


def test_a_prior_knows_the_type_of_the_question_only() -> None:
    train = [
        *(
            question("yes", kind="is it"),
            question("yes", kind="is it"),
            question("no", kind="is it"),
        ),
        question("2", kind="how many"),
        question("blue"),
    ]
    assert commonest_answers(train) == {"is it": "yes", "how many": "2", "all": "blue"}
    asked = [
        question("no", kind="is it"),
        question("5", kind="how many"),
        question("x", kind="why"),
    ]
    assert prior_answers(train, asked) == ["yes", "2", ""]


def test_an_answer_is_unlikely_where_the_same_words_are_mostly_answered_otherwise() -> None:
    records = [
        question("no") | {"question": "is there a dog?"},
        question("yes") | {"question": "is there a dog?"},
        question("No.") | {"question": "is there a dog?"},
        question("yes") | {"question": "is there a cat?"},
    ]
    assert unlikely_answers(records) == [records[1]]
