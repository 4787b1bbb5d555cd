"""MDETR's format: captions with spans, and referring expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glipv2_d2.data.readers.grounding import (
    read_grounding,
    read_phrase_boxes,
    read_referring,
)

Write = Callable[[str, Any], str]
CAPTION = "a man with a hat"


@pytest.fixture
def content() -> dict[str, Any]:
    box = {"image_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "category_id": 1}
    return {
        "images": [
            {
                "id": 3,
                "file_name": "3.jpg",
                "height": 40,
                "width": 30,
                "caption": CAPTION,
                "dataset_name": "mixed",
                "tokens_negative": [[0, 16]],
            }
        ],
        "annotations": [
            {**box, "id": 1, "tokens_positive": [[0, 5]]},
            {**box, "id": 2, "tokens_positive": [[11, 16]]},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


def test_boxes_keep_their_spans(content: dict[str, Any], write_json: Write) -> None:
    [record] = read_grounding(write_json("a.json", content), {"": "images"}, "set")
    assert record["caption"] == CAPTION
    assert record["file_name"] == "images/3.jpg"
    assert [a["tokens_positive"] for a in record["annotations"]] == [[[0, 5]], [[11, 16]]]
    assert "phrases" not in record


def test_mixed_dataset_has_a_folder_per_source(content: dict[str, Any], write_json: Write) -> None:
    content["images"][0]["data_source"] = "coco"
    path = write_json("a.json", content)
    [record] = read_grounding(path, {"coco": "coco/train2014", "vg": "gqa/images"}, "set")
    assert record["file_name"] == "coco/train2014/3.jpg"


def test_image_of_an_unknown_source_is_logged(
    content: dict[str, Any], write_json: Write, caplog: pytest.LogCaptureFixture
) -> None:
    content["images"][0]["data_source"] = "moon"
    assert read_grounding(write_json("a.json", content), {"coco": "coco"}, "set") == []
    assert "'moon'" in caplog.text


def test_evaluation_boxes_index_the_listed_phrases(
    content: dict[str, Any], write_json: Write
) -> None:
    content["images"][0] |= {
        "tokens_positive_eval": [[[11, 16]]],
        "original_img_id": 30,
        "sentence_id": 2,
    }
    [record] = read_grounding(write_json("a.json", content), {"": "images"}, "set")
    assert record["phrases"] == [[(11, 16)]]
    assert [a["category_id"] for a in record["annotations"]] == [0]
    assert (record["original_img_id"], record["sentence_id"]) == (30, 2)


def test_phrase_boxes_use_every_phrase_with_a_box(
    content: dict[str, Any], write_json: Write
) -> None:
    boxes = content["annotations"]
    boxes.append({**boxes[1], "id": 3, "bbox": [5, 6, 7, 8]})  # a second hat
    boxes.append({**boxes[1], "id": 4, "tokens_positive": []})
    [record] = read_phrase_boxes(write_json("a.json", content), "images", "set")
    assert record["phrases"] == [[(0, 5)], [(11, 16)]]
    assert [a["category_id"] for a in record["annotations"]] == [0, 1, 1]


def test_phrase_boxes_drop_captions_without_boxes(
    content: dict[str, Any], write_json: Write, caplog: pytest.LogCaptureFixture
) -> None:
    content["annotations"] = []
    assert read_phrase_boxes(write_json("a.json", content), "images", "set") == []
    assert "3.jpg" in caplog.text


def test_referring_expression_is_one_phrase_in_evaluation(
    content: dict[str, Any], write_json: Write
) -> None:
    del content["annotations"][1]
    path = write_json("a.json", content)
    [record] = read_referring(path, "images", "set", is_train=False)
    assert record["phrases"] == [[(0, len(CAPTION))]]
    assert [a["category_id"] for a in record["annotations"]] == [0]


def test_box_without_a_span_gets_the_whole_expression(
    content: dict[str, Any], write_json: Write
) -> None:
    del content["annotations"][1]["tokens_positive"]
    path = write_json("a.json", content)
    [record] = read_referring(path, "images", "set", is_train=True)
    spans = [a["tokens_positive"] for a in record["annotations"]]
    assert spans == [[[0, 5]], [[0, len(CAPTION)]]]
