"""Texts of one image that are learned together: none is lost, none is asked twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.joined_texts import join_texts as join_all
from glipv2_d2.data.joined_texts import texts_apart

FILES = ("a.jpg", "b.jpg", "c.jpg")


def question(number: int, file_name: str) -> dict[str, Any]:
    return {
        "file_name": file_name,
        "image_id": file_name,
        "question": f"is it {number}?",
        "question_id": number,
        "answers": {"yes": 1.0},
        "human_answers": ["yes"],
    }


def join_texts(records: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Of one data set."""
    return join_all({"vqa": records}, limit, {})["vqa"]


def texts_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [record, *record.get("more", ())]


@given(st.lists(st.sampled_from(FILES), max_size=30), st.integers(2, 6))
def test_every_text_is_in_one_record_of_its_image_and_all_but_the_last_are_full(
    files: list[str], limit: int
) -> None:
    joined = join_texts([question(i, file) for i, file in enumerate(files)], limit)
    asked = [
        (text["question_id"], record["file_name"]) for record in joined for text in texts_of(record)
    ]
    assert sorted(asked) == list(enumerate(files))
    for file, count in Counter(files).items():
        sizes = [len(texts_of(record)) for record in joined if record["file_name"] == file]
        assert sizes == [limit] * (count // limit) + [count % limit] * (count % limit > 0)


def test_a_limit_of_one_leaves_records_as_they_are() -> None:
    records = [question(1, "a.jpg"), question(2, "a.jpg")]
    assert join_texts(records, 1) == records


def test_what_is_to_be_found_stays_alone() -> None:
    boxes = {"file_name": "a.jpg", "annotations": []}
    grounded = {**question(2, "a.jpg"), "annotations": []}
    records = [boxes, question(1, "a.jpg"), grounded, question(3, "a.jpg")]
    joined = join_texts(records, 4)
    assert [record.get("question_id") for record in joined] == [None, 1, 2]
    assert [text["question_id"] for text in texts_of(joined[1])] == [1, 3]


def test_further_texts_keep_what_is_learned_and_what_messages_name() -> None:
    (record,) = join_texts([question(1, "a.jpg"), question(2, "a.jpg")], 2)
    assert record["more"] == [
        {
            "file_name": "a.jpg",
            "image_id": "a.jpg",
            "question": "is it 2?",
            "question_id": 2,
            "answers": {"yes": 1.0},
        }
    ]


def test_texts_of_two_data_sets_are_joined_if_these_are_drawn_equally_often() -> None:
    records_of = {
        "vqa": [question(1, "a.jpg"), question(2, "b.jpg")],
        "captions": [{"file_name": "a.jpg", "target_captions": [text]} for text in "ab"],
    }
    for factor, expected in ((1.0, [2, 1, 1]), (0.5, [1, 1, 2])):
        joined = join_all(records_of, 2, {"captions": factor})
        assert [len(texts_of(r)) for records in joined.values() for r in records] == expected


@given(st.lists(st.sampled_from(FILES), max_size=30), st.integers(2, 6))
def test_joined_texts_that_are_taken_apart_are_what_they_were(files: list[str], limit: int) -> None:
    questions = [question(i, file) for i, file in enumerate(files)]
    apart = texts_apart(join_texts(questions, limit))
    assert sorted(q["question_id"] for q in apart) == list(range(len(files)))
    for q in apart:
        # Evaluators read people's answers from the data set.
        expected = {**questions[q["question_id"]], "human_answers": ["yes"]}
        assert {**q, "human_answers": ["yes"]} == expected


def test_inputs_that_are_taken_apart_share_one_image() -> None:
    (record,) = join_texts([question(1, "a.jpg"), question(2, "a.jpg")], 2)
    image = object()
    first, second = texts_apart([{**record, "image": image}])
    assert first["image"] is second["image"] is image


def test_images_of_one_file_keep_their_ids() -> None:
    listed = [{**question(i, "a.jpg"), "image_id": i} for i in (1, 2)]
    assert [x["image_id"] for x in texts_apart(join_texts(listed, 2))] == [1, 2]


def test_what_a_text_does_not_have_it_does_not_get_from_another() -> None:
    described = {"file_name": "a.jpg", "image_id": 1, "target_captions": ["a dog"]}
    (record,) = join_texts([question(1, "a.jpg"), described], 2)
    _, second = texts_apart([record])
    assert "question" not in second and "answers" not in second
