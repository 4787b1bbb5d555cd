"""MDETR's published files, in the types of their fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.published_entries import GUYS, HAIR, HANDS, mdetr_flickr

from glipv2_d2.data.readers.grounding import read_grounding
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.evaluation.phrase_evaluator import phrase_truths
from glipv2_d2.text.tokenizer import Tokenizer

Write = Callable[[str, Any], str]


def test_sizes_of_mdetr_are_numbers(write_json: Write) -> None:
    [record] = read_grounding(write_json("a.json", mdetr_flickr()), {"": "images"}, "set")
    assert (record["height"], record["width"]) == (500, 333)


def test_a_box_of_two_phrases_is_the_truth_of_both(write_json: Write) -> None:
    [record] = read_grounding(write_json("a.json", mdetr_flickr()), {"": "images"}, "set")
    truths = phrase_truths(record)
    assert [t.phrase for t in truths] == ["Two young guys", "shaggy hair", "their hands"]
    assert [len(t.boxes) for t in truths] == [2, 1, 1]
    assert truths[1].boxes.tolist() == [[60, 50, 90, 80]]


def test_a_box_of_two_phrases_is_one_box_in_training(write_json: Write) -> None:
    records = read_grounding(write_json("a.json", mdetr_flickr()), {"": "images"}, "set")
    [record] = sanitize_dataset(
        records, name="set", class_names=(), tokenizer=Tokenizer("bert-base-uncased", 256)
    )
    spans = [record["phrases"][a["category_id"]] for a in record["annotations"]]
    assert spans == [[tuple(GUYS)], [tuple(GUYS), tuple(HAIR)], [tuple(HANDS)]]


@pytest.mark.parametrize("spans", ["no", [[1]], [["a", 2]], [5], {"a": 1}])
def test_spans_of_another_type_are_refused_by_name(spans: Any, write_json: Write) -> None:
    content = mdetr_flickr()
    content["annotations"][1]["tokens_positive"] = spans
    with pytest.raises(ValueError, match=r"annotation 1 of image 0 \('1000092795.jpg'\).*spans"):
        read_grounding(write_json("a.json", content), {"": "images"}, "set")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(mdetr_flickr()), encoding="utf-8")
    assert len(read_grounding(str(path), {"": "images"}, "set")) == 1
