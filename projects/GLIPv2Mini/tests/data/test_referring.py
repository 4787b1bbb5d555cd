"""Referring phrases for one object of a scene."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
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
from glipv2_mini.data.referring import group_phrases, referring_phrases, unique_phrase
from glipv2_mini.data.relations import MIN_DISTANCE
from glipv2_mini.data.scene_text import Thing

SIZE = (200, 100)


def thing(
    x: int, y: int, width: int, height: int, color: str | None = None, name: str = "dog"
) -> Thing:
    return Thing(name, (x, y, width, height), width * height, color)


THINGS = st.builds(
    thing, st.integers(0, 150), st.integers(0, 60), st.integers(1, 50), st.integers(1, 40)
)


def all_phrases(*things: Thing) -> dict[str, int]:
    """The phrases in every wording, with the index of their object."""
    return {
        phrase: index
        for seed in range(20)
        for phrase, index in group_phrases(things, SIZE, np.random.default_rng(seed))
    }


def test_a_pair_side_by_side_is_left_and_right() -> None:
    assert all_phrases(thing(10, 10, 20, 20), thing(60, 10, 20, 20)) == {
        "the left dog": 0,
        "the dog on the left": 0,
        "the right dog": 1,
        "the dog on the right": 1,
    }


def test_a_pair_above_each_other_is_upper_and_lower() -> None:
    assert all_phrases(thing(10, 60, 20, 20), thing(10, 10, 20, 20)) == {
        "the upper dog": 1,
        "the dog at the top": 1,
        "the lower dog": 0,
        "the dog at the bottom": 0,
    }


def test_the_second_of_three_is_in_the_middle() -> None:
    phrases = all_phrases(thing(100, 0, 9, 9), thing(0, 0, 9, 9), thing(50, 0, 9, 9))
    assert phrases["the dog in the middle"] == 2
    assert (phrases["the left dog"], phrases["the right dog"]) == (1, 0)


def test_size_is_compared_in_a_pair_and_among_three() -> None:
    large, small = thing(0, 0, 40, 40), thing(5, 5, 10, 10)
    assert all_phrases(small, large) == {"the larger dog": 1, "the smaller dog": 0}
    phrases = all_phrases(small, large, thing(6, 6, 20, 20))
    assert phrases == {"the largest dog": 1, "the smallest dog": 0}


def test_objects_of_different_known_colours_are_told_apart() -> None:
    red, blue = thing(0, 0, 20, 20, "red"), thing(0, 0, 20, 20, "blue")
    assert all_phrases(red, blue) == {"the red dog": 0, "the blue dog": 1}
    assert not all_phrases(red, red)
    assert not all_phrases(red, thing(0, 0, 20, 20))


def test_a_unique_object_may_be_called_by_its_colour() -> None:
    red = thing(0, 0, 20, 20, "red")
    phrases = {unique_phrase(red, np.random.default_rng(seed)) for seed in range(20)}
    assert phrases == {"the dog", "the red dog"}


@given(THINGS, THINGS)
def test_each_word_has_its_opposite_for_the_other_object(first: Thing, second: Thing) -> None:
    phrases = group_phrases([first, second], SIZE, np.random.default_rng(0))
    assert sorted(index for _, index in phrases) == [0] * (len(phrases) // 2) + [1] * (
        len(phrases) // 2
    )


@given(THINGS, THINGS)
def test_a_mirrored_image_changes_left_and_right_only(first: Thing, second: Thing) -> None:
    def mirror(one: Thing) -> Thing:
        x, y, width, height = one.box
        return replace(one, box=(SIZE[0] - x - width, y, width, height))

    phrases = all_phrases(first, second)
    mirrored = all_phrases(mirror(first), mirror(second))
    assert mirrored == {_swap_sides(phrase): target for phrase, target in phrases.items()}


def _swap_sides(phrase: str) -> str:
    sides = {"left": "right", "right": "left"}
    return " ".join(sides.get(word, word) for word in phrase.split())


def content(*categories: int) -> dict[str, Any]:
    """One image with an object of each category, from left to right."""
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 400, "height": 100, "caption": ""}],
        "annotations": [
            {
                "id": i,
                "image_id": 7,
                "category_id": category,
                "bbox": [90 * i, 10, 20, 20],
                "area": 400,
            }
            for i, category in enumerate(categories)
        ],
        "categories": [{"id": 1, "name": "red apple"}, {"id": 2, "name": "dog"}],
    }


def test_groups_of_at_most_three_have_phrases() -> None:
    targets = {item["id"] for _, _, item in referring_phrases(content(1, 2, 1))}
    assert targets == {0, 1, 2}
    assert not list(referring_phrases(content(2, 2, 2, 2)))


def test_three_phrases_of_ten_are_for_unique_objects() -> None:
    scenes = content()
    for i in range(40):
        scenes["images"].append({**scenes["images"][0], "id": 100 + i})
        for item in content(1, 2, 1)["annotations"]:
            ids = {"id": len(scenes["annotations"]), "image_id": 100 + i}
            scenes["annotations"].append({**item, **ids})
    phrases = [phrase for _, phrase, _ in referring_phrases(scenes)]
    assert phrases.count("the dog") / len(phrases) == pytest.approx(0.3, abs=0.01)


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
        assert scenes.cats[target["category_id"]]["name"] in image["caption"]
        decoded = coco_mask.decode(annotation["segmentation"])
        assert np.array_equal(decoded, scenes.annToMask(target))


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
