"""Flickr30k Entities as captions with boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glipv2_d2.data.readers.flickr30k_captions import read_images, read_sentences

BOTH = [[0, 5], [14, 20]]
CAPTIONS = ["Two dogs play .", "A dog runs on a lawn ."]


@pytest.fixture
def json_file(write_json: Callable[[str, Any], str]) -> str:
    """MDETR's file: a row per sentence, sizes as text."""
    image = {"file_name": "36979.jpg", "height": "30", "width": "40", "original_img_id": 36979}
    spans = [[[[0, 8]]], [[[0, 5]], [[14, 20]]]]
    box = {"area": 9.0, "iscrowd": 0, "category_id": 1}
    return write_json(
        "final_flickr_separateGT_val.json",
        {
            "images": [
                {**image, "id": i, "sentence_id": i, "caption": c, "tokens_positive_eval": spans[i]}
                for i, c in enumerate(CAPTIONS)
            ],
            "annotations": [
                {**box, "id": 1, "image_id": 0, "bbox": [1, 2, 9, 8], "tokens_positive": [[0, 8]]},
                {**box, "id": 2, "image_id": 1, "bbox": [1, 2, 5, 8], "tokens_positive": [[0, 5]]},
                {**box, "id": 3, "image_id": 1, "bbox": [0, 9, 30, 20], "tokens_positive": BOTH},
            ],
            "categories": [{"id": 1, "name": "object"}],
        },
    )


def test_a_sentence_is_a_target_with_boxes(json_file: str) -> None:
    records = read_sentences(json_file, "images", "set")
    assert [record["target_captions"] for record in records] == [[c] for c in CAPTIONS]
    assert [len(record["annotations"]) for record in records] == [1, 3]


def test_an_image_has_all_sentences_with_the_boxes_of_their_phrases(json_file: str) -> None:
    [record] = read_images(json_file, "images", "set")
    assert record["image_id"] == 36979
    assert record["target_captions"] == CAPTIONS
    phrases = [
        " ".join(record["caption"][begin:end] for begin, end in a["tokens_positive"])
        for a in record["annotations"]
    ]
    assert phrases == ["Two dogs", "A dog", "A dog", "a lawn"]
