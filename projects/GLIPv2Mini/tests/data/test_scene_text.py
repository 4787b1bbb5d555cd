from __future__ import annotations

import pytest

from glipv2_d2.data.composed_dataset import scene_caption
from glipv2_d2.data.tinting import TINTS
from glipv2_mini.data.cutouts import NAMES_FILE, stamp_entries
from glipv2_mini.data.scene_text import Thing, noun_phrase, plural, things_per_image

ANSWERS_FILE = NAMES_FILE.with_name("mini_answers.txt")


def test_each_object_has_the_span_of_its_noun_phrase() -> None:
    caption, spans = scene_caption(["dog", "cherry", "dog", "iris"], noun_phrase)
    assert caption == "a picture of two dogs, a cherry and an iris"
    phrases = [caption[start:end] for start, end in spans]
    assert phrases == ["two dogs", "a cherry", "two dogs", "an iris"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("potato", "potatoes"), ("blue mouse", "blue mice"), ("piece of food", "pieces of food")],
)
def test_the_noun_of_a_name_is_in_the_plural(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_objects_are_read_from_annotations() -> None:
    scenes = {
        "images": [{"id": 3}, {"id": 4}],
        "annotations": [
            {"image_id": 4, "category_id": 1, "bbox": [10, 0, 20, 30], "area": 90, "color": "red"}
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    assert things_per_image(scenes) == {3: [], 4: [Thing("dog", (10, 0, 20, 30), 90, "red")]}


def test_every_answer_is_on_the_list() -> None:
    answers = ANSWERS_FILE.read_text(encoding="utf8").splitlines()
    assert len(set(answers)) == len(answers)
    names = {entry.name for entry in stamp_entries()}
    assert {"yes", "no", *map(str, range(7)), *TINTS, *names} <= set(answers)
