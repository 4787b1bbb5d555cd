"""Records with a question or captions, their faults and their tasks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.text_tasks import check_text_task, mirror_text_fields, soft_scores

QUESTION = {
    "file_name": "1.jpg",
    "dataset_name": "vqa",
    "question": "is it red?",
    "question_id": 5,
    "answers": {"yes": 1.0},
}
CAPTIONS = {"file_name": "1.jpg", "target_captions": ["a cat", "a dog"]}


@given(st.lists(st.sampled_from(("yes", "no", "maybe")), min_size=1, max_size=10))
def test_soft_scores_are_those_of_fiber(people: list[str]) -> None:
    scores = soft_scores(people)
    for answer, count in Counter(people).items():
        of_ten = {1: 0.3, 2: 0.6, 3: 0.9}.get(count, 1.0)
        assert scores[answer] == (of_ten if len(people) >= 4 else count / len(people))
    assert scores.keys() == set(people)


def test_spellings_of_an_answer_are_counted_together() -> None:
    assert soft_scores(["Two dogs", "2 dogs", "the two dogs.", "3"]) == {"2 dogs": 0.9, "3": 0.3}


def test_empty_answers_get_no_score() -> None:
    assert soft_scores(["", " "]) == {}


def test_mirroring_swaps_left_and_right_in_all_text_fields() -> None:
    record = {
        "question": "Is the left cat right of the dog?",
        "answers": {"left": 1.0, "right": 0.3, "no": 0.3},
        "target_captions": ["a cat on the left", "a bright cat"],
        "image_id": 3,
    }
    assert mirror_text_fields(record) == {
        "question": "Is the right cat left of the dog?",
        "answers": {"right": 1.0, "left": 0.3, "no": 0.3},
        "target_captions": ["a cat on the right", "a bright cat"],
        "image_id": 3,
    }
    assert mirror_text_fields(mirror_text_fields(record)) == record


@pytest.mark.parametrize("record", [QUESTION, CAPTIONS])
@pytest.mark.parametrize("is_train", [True, False])
def test_valid_records_pass(is_train: bool, record: dict[str, Any]) -> None:
    check_text_task(record, is_train=is_train)


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {other: value for other, value in record.items() if other != key}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**QUESTION, "question": " "}, r"'vqa', question 5 of image '1\.jpg': .*empty"),
        ({**QUESTION, "question": None}, "question 5 .*empty"),
        (without(QUESTION, "question_id"), "no question_id"),
        ({**CAPTIONS, "target_captions": ["a cat", ""]}, r"image '1\.jpg': .*empty"),
        ({**CAPTIONS, "target_captions": "a cat"}, r"image '1\.jpg': .*not a list"),
        ({**CAPTIONS, "target_captions": None}, r"image '1\.jpg': .*not a list"),
        ({**QUESTION, "answers": ["yes"]}, "question 5 .*not scores by answer"),
        ({**QUESTION, "answers": {"yes": "often"}}, "question 5 .*not scores by answer"),
    ],
)
@pytest.mark.parametrize("is_train", [True, False])
def test_invalid_or_empty_text_fields_raise(
    is_train: bool, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_text_task(record, is_train=is_train)


@pytest.mark.parametrize(
    "record", [without(QUESTION, "answers"), {**CAPTIONS, "target_captions": []}]
)
def test_record_of_a_test_set_is_valid_for_evaluation_only(record: dict[str, Any]) -> None:
    check_text_task(record, is_train=False)
    with pytest.raises(ValueError, match=r"1\.jpg.*test set"):
        check_text_task(record, is_train=True)
