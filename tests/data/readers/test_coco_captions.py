"""Captioning datasets: COCO's files and Karpathy's splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glipv2_d2.data.readers.coco_captions import read_coco_captions, read_karpathy

Write = Callable[[str, Any], str]


@pytest.fixture
def coco() -> dict[str, Any]:
    image = {"license": 1, "height": 40, "width": 30}
    return {
        "images": [
            {**image, "id": 9, "file_name": "9.jpg"},
            {**image, "id": 4, "file_name": "4.jpg"},
        ],
        "annotations": [
            {"image_id": 9, "id": 1, "caption": "A cat."},
            {"image_id": 4, "id": 2, "caption": "A dog\nruns. "},
            {"image_id": 9, "id": 3, "caption": "The cat sits."},
        ],
    }


def test_an_image_has_all_of_its_captions(coco: dict[str, Any], write_json: Write) -> None:
    dog, cat = read_coco_captions(write_json("a.json", coco), "coco/val2014", "set")
    assert (cat["file_name"], cat["image_id"]) == ("coco/val2014/9.jpg", 9)
    assert (cat["height"], cat["width"]) == (40, 30)
    assert cat["target_captions"] == ["A cat.", "The cat sits."]
    assert dog["target_captions"] == ["A dog runs."]
    assert "annotations" not in cat


def test_caption_may_be_in_the_list_of_images(coco: dict[str, Any], write_json: Write) -> None:
    # The annotations of such files are boxes.
    for image in coco["images"]:
        image["caption"] = f"picture {image['id']}"
    coco["annotations"] = [{"image_id": 4, "id": 1, "bbox": [1, 2, 3, 4], "category_id": 1}]
    records = read_coco_captions(write_json("a.json", coco), "images", "set")
    assert [record["target_captions"] for record in records] == [["picture 4"], ["picture 9"]]


def test_a_test_set_has_no_captions(coco: dict[str, Any], write_json: Write) -> None:
    del coco["annotations"]
    records = read_coco_captions(write_json("a.json", coco), "images", "set")
    assert [record["target_captions"] for record in records] == [[], []]


@pytest.mark.parametrize("wrong", [{"text": "A cat."}, {"image_id": 8, "caption": "A cat."}])
def test_annotations_without_a_caption_of_an_image_raise(
    wrong: dict[str, Any], coco: dict[str, Any], write_json: Write
) -> None:
    coco["annotations"] = [{"image_id": 9, "id": 1, **wrong}]
    with pytest.raises(ValueError, match="none of its 1 annotations"):
        read_coco_captions(write_json("a.json", coco), "images", "set")


def test_images_need_a_file_name_but_no_size(coco: dict[str, Any], write_json: Write) -> None:
    for image in coco["images"]:
        del image["height"], image["width"]
    assert len(read_coco_captions(write_json("a.json", coco), "images", "set")) == 2
    del coco["images"][0]["file_name"]
    with pytest.raises(ValueError, match="image 9 has the 'file_name' None"):
        read_coco_captions(write_json("b.json", coco), "images", "set")


@pytest.mark.parametrize("caption", [" ", None])
def test_empty_caption_is_dropped_and_logged(
    caption: object, coco: dict[str, Any], write_json: Write, caplog: pytest.LogCaptureFixture
) -> None:
    coco["annotations"][2]["caption"] = caption
    _, cat = read_coco_captions(write_json("a.json", coco), "images", "set")
    assert cat["target_captions"] == ["A cat."]
    assert "1 captions were empty" in caplog.text
    assert "9.jpg" in caplog.text


def test_image_without_captions_raises(coco: dict[str, Any], write_json: Write) -> None:
    coco["annotations"][1]["caption"] = ""
    with pytest.raises(ValueError, match=r"a\.json.*1 of 2 images.*'images/4\.jpg'"):
        read_coco_captions(write_json("a.json", coco), "images", "set")


@pytest.fixture
def karpathy() -> dict[str, Any]:
    def image(cocoid: int, split: str, folder: str = "val2014") -> dict[str, Any]:
        return {
            "filepath": folder,
            "sentids": [cocoid],
            "filename": f"COCO_{folder}_{cocoid:012d}.jpg",
            "imgid": 0,
            "split": split,
            "sentences": [
                {
                    "tokens": ["a", "cat"],
                    "raw": "A cat. ",
                    "imgid": 0,
                    "sentid": cocoid,
                }
            ],
            "cocoid": cocoid,
        }

    return {
        "images": [
            image(1, "train", "train2014"),
            image(2, "test"),
            image(3, "restval"),
            image(4, "val"),
        ],
        "dataset": "coco",
    }


@pytest.mark.parametrize(("split", "ids"), [("train", [1, 3]), ("val", [4]), ("test", [2])])
def test_restval_belongs_to_the_training_split(
    split: str, ids: list[int], karpathy: dict[str, Any], write_json: Write
) -> None:
    records = read_karpathy(write_json("dataset_coco.json", karpathy), "coco", split)
    assert [record["image_id"] for record in records] == ids


def test_raw_sentences_are_kept(karpathy: dict[str, Any], write_json: Write) -> None:
    [record] = read_karpathy(write_json("dataset_coco.json", karpathy), "coco", "test")
    assert record == {
        "file_name": "coco/val2014/COCO_val2014_000000000002.jpg",
        "image_id": 2,
        "target_captions": ["A cat."],
    }


def test_invalid_entry_raises(karpathy: dict[str, Any], write_json: Write) -> None:
    del karpathy["images"][2]["sentences"]
    with pytest.raises(ValueError, match="number 2 of its images.*'sentences'"):
        read_karpathy(write_json("dataset_coco.json", karpathy), "coco", "train")


@pytest.mark.parametrize("content", [[], {"images": [{"split": "test", "filename": "1.jpg"}]}])
def test_invalid_file_raises(content: Any, write_json: Write) -> None:
    with pytest.raises(ValueError, match=r"dataset_coco\.json.*Karpathy"):
        read_karpathy(write_json("dataset_coco.json", content), "coco", "test")
