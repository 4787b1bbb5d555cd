"""Questions and answers in VQAv2's and GQA's formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.published_entries import vqa_annotation

from glipv2_d2.data.readers.gqa import read_gqa, read_grounded_gqa
from glipv2_d2.data.readers.vqa import coco_image, read_questions

Write = Callable[[str, Any], str]

PEOPLE = ["net", "net", "Net.", "netting", "mesh", "net", "net", "net", "net", "net"]


def questions() -> dict[str, Any]:
    return {
        "info": {"version": "2.0"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "train2014",
        "questions": [
            {"image_id": 458752, "question": "What is this?", "question_id": 458752000},
            {"image_id": 458752, "question": "Is it red?", "question_id": 458752001},
        ],
    }


def answers() -> dict[str, Any]:
    # The order of the two files differs.
    return {
        "annotations": [
            vqa_annotation(458752001, ["no"] * 10, "yes/no"),
            vqa_annotation(458752000, PEOPLE, "other"),
        ]
    }


def image_of(image_id: int) -> dict[str, Any]:
    return coco_image("coco/train2014", "train2014", image_id)


@pytest.fixture
def read(write_json: Write) -> Callable[..., list[dict[str, Any]]]:
    def read_both(
        questions: dict[str, Any],
        answers: dict[str, Any] | None,
        image_of: Callable[[Any], dict[str, Any]] = image_of,
    ) -> list[dict[str, Any]]:
        answers_file = None if answers is None else write_json("annotations.json", answers)
        return read_questions(write_json("questions.json", questions), answers_file, image_of)

    return read_both


def test_answers_are_matched_to_their_questions(read: Callable[..., Any]) -> None:
    first, second = read(questions(), answers())
    assert first["file_name"] == "coco/train2014/COCO_train2014_000000458752.jpg"
    assert (first["image_id"], first["question_id"]) == (458752, 458752000)
    assert first["question"] == "What is this?"
    assert first["human_answers"] == PEOPLE
    assert first["answers"] == {"net": 1.0, "netting": 0.3, "mesh": 0.3}
    assert (first["answer_type"], first["question_type"]) == ("other", "what is this")
    assert second["answers"] == {"no": 1.0}
    assert "annotations" not in first


def test_a_test_set_has_no_answers(read: Callable[..., Any]) -> None:
    for record in read(questions(), None):
        assert not {"answers", "human_answers", "answer_type"} & record.keys()


def test_files_with_different_questions_raise(read: Callable[..., Any]) -> None:
    other = answers()
    other["annotations"][1]["question_id"] = 99
    with pytest.raises(
        ValueError,
        match=r"questions\.json.*annotations\.json.*1 have no answer \(458752000\), 1 answers.*99",
    ):
        read(questions(), other)


def test_ids_of_different_types_raise(read: Callable[..., Any]) -> None:
    other = answers()
    for entry in other["annotations"]:
        entry["question_id"] = str(entry["question_id"])
    with pytest.raises(ValueError, match="types int and str, use one type"):
        read(questions(), other)


def test_answers_that_are_not_a_list_raise(read: Callable[..., Any]) -> None:
    other = answers()
    other["annotations"][1]["answers"] = None
    with pytest.raises(ValueError, match="number 1 of 'annotations'.*'answers' None.*a list"):
        read(questions(), other)


def test_repeated_question_raises(read: Callable[..., Any]) -> None:
    twice = questions()
    twice["questions"][1]["question_id"] = 458752000
    with pytest.raises(ValueError, match="repeated question ids: 458752000"):
        read(twice, None)


def test_question_without_text_raises(read: Callable[..., Any]) -> None:
    empty = questions()
    empty["questions"][1]["question"] = " "
    with pytest.raises(ValueError, match=r"question 458752001 of image 'coco.*empty"):
        read(empty, answers())


def test_answers_about_another_image_raise(read: Callable[..., Any]) -> None:
    moved = answers()
    moved["annotations"][1]["image_id"] = 7
    with pytest.raises(ValueError, match="question 458752000 is about the image 7, but"):
        read(questions(), moved)


def test_empty_list_of_answers_raises(read: Callable[..., Any]) -> None:
    empty = answers()
    empty["annotations"][0]["answers"] = []
    with pytest.raises(ValueError, match=r"annotations\.json.*458752001 has an empty list"):
        read(questions(), empty)


@pytest.mark.parametrize("odd", ["no", {"answer_confidence": "yes"}, {"answer": None}])
def test_invalid_answer_raises(odd: Any, read: Callable[..., Any]) -> None:
    other = answers()
    other["annotations"][0]["answers"][4] = odd
    with pytest.raises(ValueError, match=r"annotations\.json.*question 458752001.*number 4"):
        read(questions(), other)


def test_question_about_an_unlisted_image_raises(read: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="question 458752000 is about the image 458752"):
        read(questions(), None, {}.__getitem__)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not in VQAv2's format"),
        ({"questions": [{"question_id": 1}]}, "number 0.*'image_id'"),
        ({"questions": ["what?"]}, "number 0.*'question_id'"),
        ({"questions": [{"question_id": [1], "image_id": 2, "question": "?"}]}, r"0.*\[1\]"),
        ({"questions": [{"question_id": 1, "image_id": None, "question": "?"}]}, "0.*None"),
        (
            {"questions": [{"question_id": 1, "image_id": "2", "question": "a?"}]},
            "'2', which is",
        ),
    ],
)
def test_invalid_file_raises(content: Any, message: str, read: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        read(content, None)


GQA = {
    "02930152": {
        "semantic": [],
        "entailed": [],
        "equivalent": ["02930152"],
        "question": "Is the sky dark?",
        "imageId": "2354786",
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky_dark"},
        "answer": "yes",
        "semanticStr": "",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
        "fullAnswer": "Yes, the sky is dark.",
    },
    "07333408": {
        "question": "What is on the white wall?",
        "imageId": "2375429",
        "answer": "pipe",
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The pipe is on the wall.",
    },
}


def test_gqa_has_one_answer_per_question(write_json: Write) -> None:
    first, second = read_gqa(write_json("val_balanced_questions.json", GQA), "gqa/images")
    assert first["file_name"] == "gqa/images/2354786.jpg"
    assert (first["question_id"], first["image_id"]) == ("02930152", "2354786")
    assert (first["human_answers"], first["answers"]) == (["yes"], {"yes": 1.0})
    assert (first["question_type"], first["answer_type"]) == ("verify", "binary")
    assert (second["question_type"], second["answer_type"]) == ("query", "open")


def test_gqa_test_set_has_no_answers(write_json: Write) -> None:
    bare = {"1": {"question": "What is it?", "imageId": "n5"}}
    [record] = read_gqa(write_json("test_balanced_questions.json", bare), "gqa/images")
    assert not {"answers", "human_answers", "question_type"} & record.keys()


def test_invalid_gqa_question_raises(write_json: Write) -> None:
    odd = {**GQA, "9": {"question": "What?", "imageId": "n5", "answer": None}}
    with pytest.raises(ValueError, match="question '9' is not in GQA's format"):
        read_gqa(write_json("gqa.json", odd), "gqa/images")


@pytest.mark.parametrize("content", [[], {"1": {"question": "What?"}}, {"1": []}])
def test_invalid_gqa_file_raises(content: Any, write_json: Write) -> None:
    with pytest.raises(ValueError, match=r"gqa\.json.*GQA's format"):
        read_gqa(write_json("gqa.json", content), "gqa/images")


GRAPHS = {
    "2375429": {
        "width": 640,
        "height": 480,
        "location": "kitchen",
        "objects": {
            "11": {"name": "wall", "x": 5, "y": 6, "w": 300, "h": 200, "attributes": ["white"]},
            "12": {"name": "pipe", "x": 9, "y": 10, "w": 20, "h": 90, "relations": []},
            "13": {"name": "dot", "x": 9, "y": 10, "w": 0, "h": 90},
        },
    }
}


def grounded_gqa(write_json: Write, pointers: Any, graphs: Any = GRAPHS) -> list[dict[str, Any]]:
    entry = {**GQA["07333408"], "annotations": pointers}
    questions_file = write_json("val_balanced_questions.json", {"07333408": entry})
    graphs_file = write_json("val_sceneGraphs.json", graphs)
    return read_grounded_gqa(questions_file, graphs_file, "gqa/images", "gqa")


def test_words_of_gqa_and_its_answer_have_the_boxes_of_the_scene_graph(write_json: Write) -> None:
    pointers = {"question": {"4:6": "11"}, "answer": {"0": "12"}, "fullAnswer": {"1": "12"}}
    [record] = grounded_gqa(write_json, pointers)
    assert record["caption"] == "What is on the white wall? pipe"
    assert (record["height"], record["width"]) == (480, 640)
    spans = [(a["bbox"], *a["tokens_positive"][0]) for a in record["annotations"]]
    assert [(box, record["caption"][b:e]) for box, b, e in spans] == [
        ([5, 6, 300, 200], "white wall"),
        ([9, 10, 20, 90], "pipe"),
    ]


@pytest.mark.parametrize(
    "pointers",
    [{}, {"question": {"4": "99"}}, {"question": {"9": "11"}}, {"question": {"2": "13"}}],
)
def test_a_question_of_gqa_without_boxes_has_no_caption(pointers: Any, write_json: Write) -> None:
    [record] = grounded_gqa(write_json, pointers)
    assert not {"caption", "annotations"} & record.keys()


@pytest.mark.parametrize(
    ("pointers", "graphs"),
    [
        ({"question": {"four": "11"}}, GRAPHS),
        ({"question": ["11"]}, GRAPHS),
        ({"question": {"4": "11"}}, {"2375429": {"objects": {"11": {"x": 1}}}}),
        ({"question": {"4": "11"}}, {"2375429": [1]}),
        ({}, [1]),
    ],
)
def test_invalid_boxes_of_gqa_raise(pointers: Any, graphs: Any, write_json: Write) -> None:
    with pytest.raises(ValueError, match="val_sceneGraphs.json"):
        grounded_gqa(write_json, pointers, graphs)
