"""Merging the text tasks of one image into samples, and splitting them again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.multi_text_samples import merge_texts_per_image, split_texts

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


def merge(records: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Merge the records of one dataset."""
    return merge_texts_per_image({"vqa": records}, limit, {})["vqa"]


def texts_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [record, *record.get("more", ())]


@given(st.lists(st.sampled_from(FILES), max_size=30), st.integers(2, 6))
def test_every_text_is_in_one_record_and_all_but_the_last_are_full(
    files: list[str], limit: int
) -> None:
    merged = merge([question(i, file) for i, file in enumerate(files)], limit)
    ids = [
        (text["question_id"], record["file_name"]) for record in merged for text in texts_of(record)
    ]
    assert sorted(ids) == list(enumerate(files))
    for file, count in Counter(files).items():
        sizes = [len(texts_of(record)) for record in merged if record["file_name"] == file]
        assert sizes == [limit] * (count // limit) + [count % limit] * (count % limit > 0)


def test_limit_of_one_merges_nothing() -> None:
    records = [question(1, "a.jpg"), question(2, "a.jpg")]
    assert merge(records, 1) == records


def test_records_with_annotations_are_not_merged() -> None:
    boxes = {"file_name": "a.jpg", "annotations": []}
    grounded = {**question(2, "a.jpg"), "annotations": []}
    records = [boxes, question(1, "a.jpg"), grounded, question(3, "a.jpg")]
    merged = merge(records, 4)
    assert [record.get("question_id") for record in merged] == [None, 1, 2]
    assert [text["question_id"] for text in texts_of(merged[1])] == [1, 3]


def test_further_texts_keep_only_their_text_keys() -> None:
    (record,) = merge([question(1, "a.jpg"), question(2, "a.jpg")], 2)
    assert record["more"] == [
        {
            "file_name": "a.jpg",
            "image_id": "a.jpg",
            "question": "is it 2?",
            "question_id": 2,
            "answers": {"yes": 1.0},
        }
    ]


def test_texts_of_two_datasets_are_merged_if_repeat_factors_are_equal() -> None:
    records_of = {
        "vqa": [question(1, "a.jpg"), question(2, "b.jpg")],
        "captions": [{"file_name": "a.jpg", "target_captions": [text]} for text in "ab"],
    }
    for factor, expected in ((1.0, [2, 1, 1]), (0.5, [1, 1, 2])):
        merged = merge_texts_per_image(records_of, 2, {"captions": factor})
        assert [len(texts_of(r)) for records in merged.values() for r in records] == expected


@given(st.lists(st.sampled_from(FILES), max_size=30), st.integers(2, 6))
def test_split_texts_inverts_merging(files: list[str], limit: int) -> None:
    questions = [question(i, file) for i, file in enumerate(files)]
    inputs = split_texts(merge(questions, limit))
    assert sorted(q["question_id"] for q in inputs) == list(range(len(files)))
    for q in inputs:
        # human_answers stay in the dataset, for evaluators.
        expected = {**questions[q["question_id"]], "human_answers": ["yes"]}
        assert {**q, "human_answers": ["yes"]} == expected


def test_split_texts_share_one_image_tensor() -> None:
    (record,) = merge([question(1, "a.jpg"), question(2, "a.jpg")], 2)
    image = object()
    first, second = split_texts([{**record, "image": image}])
    assert first["image"] is second["image"] is image


def test_images_of_one_file_keep_their_ids() -> None:
    listed = [{**question(i, "a.jpg"), "image_id": i} for i in (1, 2)]
    assert [x["image_id"] for x in split_texts(merge(listed, 2))] == [1, 2]


def test_split_texts_do_not_mix_keys_of_different_texts() -> None:
    captioned = {"file_name": "a.jpg", "image_id": 1, "target_captions": ["a dog"]}
    (record,) = merge([question(1, "a.jpg"), captioned], 2)
    _, second = split_texts([record])
    assert "question" not in second and "answers" not in second
