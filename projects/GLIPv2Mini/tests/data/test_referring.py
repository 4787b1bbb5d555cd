"""Referring phrases for one of two objects of a class."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_scenes import write_drawn_scenes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from glipv2_d2.data.readers.grounding import read_referring
from glipv2_mini.data.referring import (
    MIN_AREA_RATIO,
    MIN_DISTANCE,
    distinguishing_words,
    referring_phrases,
)

SIZE = (200, 100)
OPPOSITE = {"left": "right", "upper": "lower", "larger": "smaller"}
OPPOSITE |= {other: word for word, other in OPPOSITE.items()}


def make_object(x: int, y: int, width: int, height: int, area: int | None = None) -> dict[str, Any]:
    return {"bbox": [x, y, width, height], "area": width * height if area is None else area}


OBJECTS = st.builds(
    make_object, st.integers(0, 150), st.integers(0, 60), st.integers(1, 50), st.integers(1, 40)
)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        # Side by side, of one size: 31 of 200 pixels are over 15 %.
        (make_object(10, 10, 20, 20), make_object(41, 10, 20, 20), {"left": 0, "right": 1}),
        (make_object(10, 10, 20, 20), make_object(39, 10, 20, 20), {}),
        # Above each other: 15 of 100 pixels.
        (make_object(10, 25, 20, 20), make_object(10, 10, 20, 20), {"upper": 1, "lower": 0}),
        # One inside the other is neither left nor upper, at any distance of the centres.
        (make_object(0, 0, 200, 100), make_object(150, 60, 40, 30), {"larger": 0, "smaller": 1}),
        # The larger box has a small mask: it is occluded.
        (make_object(10, 10, 20, 20), make_object(10, 10, 40, 20, area=600), {}),
    ],
)
def test_worked_examples(
    first: dict[str, Any], second: dict[str, Any], words: dict[str, int]
) -> None:
    assert dict(distinguishing_words([first, second], SIZE)) == words


@given(OBJECTS, OBJECTS)
def test_each_word_has_its_opposite_for_the_other_object(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    words = dict(distinguishing_words([first, second], SIZE))
    for word, target in words.items():
        assert words[OPPOSITE[word]] == 1 - target


@given(OBJECTS, OBJECTS)
def test_the_order_of_the_objects_does_not_matter(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    words = dict(distinguishing_words([first, second], SIZE))
    swapped = dict(distinguishing_words([second, first], SIZE))
    assert swapped == {word: 1 - target for word, target in words.items()}


@given(OBJECTS, OBJECTS)
def test_a_mirrored_image_changes_left_and_right_only(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    def mirror(one: dict[str, Any]) -> dict[str, Any]:
        x, y, width, height = one["bbox"]
        return {**one, "bbox": [SIZE[0] - x - width, y, width, height]}

    words = dict(distinguishing_words([first, second], SIZE))
    mirrored = dict(distinguishing_words([mirror(first), mirror(second)], SIZE))
    sides = {"left": "right", "right": "left"}
    assert mirrored == {sides.get(word, word): target for word, target in words.items()}


def content(*categories: int) -> dict[str, Any]:
    """One image with an object of each category, from left to right."""
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 400, "height": 100, "caption": ""}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, **make_object(100 * i, 10, 20, 20)}
            for i, category in enumerate(categories)
        ],
        "categories": [{"id": 1, "name": "red apple"}, {"id": 2, "name": "dog"}],
    }


def test_only_pairs_have_phrases() -> None:
    phrases = [(phrase, item["id"]) for _, phrase, item in referring_phrases(content(1, 2, 1))]
    assert phrases == [("the left red apple", 0), ("the right red apple", 2)]
    assert not list(referring_phrases(content(2, 2, 2, 1)))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_scenes(tmp_path_factory.mktemp("referring"), num_images=30, size=96, seed=0)


def test_a_phrase_has_the_box_and_mask_of_its_object(drawn: Path) -> None:
    scenes = COCO(str(drawn))
    phrases = json.loads(drawn.with_name("val_referring.json").read_text())
    assert phrases["images"]
    for image, annotation in zip(phrases["images"], phrases["annotations"], strict=True):
        target = scenes.anns[annotation["original_id"]]
        assert annotation["image_id"] == image["id"]
        assert target["image_id"] == image["original_id"]
        assert image["file_name"] == scenes.imgs[image["original_id"]]["file_name"]
        [other] = [
            a
            for a in scenes.imgToAnns[image["original_id"]]
            if a["category_id"] == target["category_id"] and a["id"] != target["id"]
        ]
        _, word, *name = image["caption"].split()
        assert " ".join(name) == scenes.cats[target["category_id"]]["name"]
        assert is_true(word, scenes.annToMask(target), scenes.annToMask(other))
        decoded = coco_mask.decode(annotation["segmentation"])
        assert np.array_equal(decoded, scenes.annToMask(target))


def is_true(word: str, target: np.ndarray, other: np.ndarray) -> bool:
    """Whether the word holds for the masks."""
    (target_y, target_x), (other_y, other_x) = np.nonzero(target), np.nonzero(other)
    return {
        "left": target_x.min() < other_x.min() and target_x.max() < other_x.max(),
        "right": target_x.min() > other_x.min() and target_x.max() > other_x.max(),
        "upper": target_y.min() < other_y.min() and target_y.max() < other_y.max(),
        "lower": target_y.min() > other_y.min() and target_y.max() > other_y.max(),
        "larger": len(target_x) >= MIN_AREA_RATIO * len(other_x),
        "smaller": len(other_x) >= MIN_AREA_RATIO * len(target_x),
    }[word]


@pytest.mark.parametrize("is_train", [True, False])
def test_the_file_is_parsed_as_refcocos(is_train: bool, drawn: Path) -> None:
    path = str(drawn.with_name("val_referring.json"))
    records = read_referring(path, "images", "set", is_train=is_train)
    for record in records:
        [annotation] = record["annotations"]
        whole = [0, len(record["caption"])]
        assert annotation["tokens_positive"] == [whole]
        assert annotation["segmentation"]
        assert record.get("phrases") == (None if is_train else [[tuple(whole)]])
    ids = [record["image_id"] for record in records]
    assert len(set(ids)) == len(ids) > 0


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_missing_phrases_are_added_to_a_complete_split(tmp_path: Path) -> None:
    settings = {"split": "val", "num_images": 12, "size": 64, "seed": 1}
    write_drawn_scenes(tmp_path, **settings)
    before = hashes(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "val_referring.json").unlink()
    write_drawn_scenes(tmp_path, **settings)
    assert hashes(tmp_path) == before
    written = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert written == {tmp_path / "val_referring.json"}


def test_phrases_are_rewritten_when_the_annotations_change(tmp_path: Path) -> None:
    settings = {"split": "val", "num_images": 12, "size": 64}
    write_drawn_scenes(tmp_path, **settings, seed=1)
    before = json.loads((tmp_path / "val_referring.json").read_text())
    write_drawn_scenes(tmp_path, **settings, seed=2)
    after = json.loads((tmp_path / "val_referring.json").read_text())
    assert before["info"]["annotations_sha256"] != after["info"]["annotations_sha256"]
    assert before["images"] != after["images"]
    assert after["info"]["min_distance"] == MIN_DISTANCE
