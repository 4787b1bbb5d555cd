"""Augmented captions and questions are true of their scenes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glipv2_mini.data.augmentation import (
    NUM_CAPTIONS,
    augment_captions,
    augmented_questions,
    caption_forms,
)
from glipv2_mini.data.scene_text import Thing, plural, with_article

NAMES = ("dog", "apple", "bus", "fish", "cherry", "scissors", "cat")
SIZE = (100, 100)


def scenes_of(names_per_image: list[list[str]]) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "caption": "old"}
            for i in range(1, len(names_per_image) + 1)
        ],
        "annotations": [
            # From right to left, of similar width.
            {
                "image_id": i,
                "category_id": NAMES.index(name),
                "bbox": [-10 * k, 0, 4 + k, 4],
                "area": 16,
            }
            for i, names in enumerate(names_per_image, start=1)
            for k, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }


SCENES = st.lists(st.lists(st.sampled_from(NAMES), max_size=5), max_size=4)


def thing(name: str, x: int = 0, color: str | None = None) -> Thing:
    return Thing(name, (x, 0, 20, 20), 400, color)


def test_captions_have_all_forms_that_are_true() -> None:
    things = [thing("dog", color="red"), thing("cat", 22)]
    assert caption_forms(things, SIZE) == [
        "a red dog and a cat",
        "a photo of a red dog and a cat",
        "a picture of a red dog and a cat",
        "a red dog next to a cat",
    ]


def test_distant_objects_are_not_next_to_each_other() -> None:
    forms = caption_forms([thing("dog"), thing("cat", 60)], SIZE)
    assert not any("next to" in form for form in forms)


def test_a_short_caption_names_the_largest_classes() -> None:
    names = ("bus", "dog", "cat", "dog")
    assert "a bus and two dogs" in caption_forms([thing(name) for name in names], SIZE)


def test_objects_of_one_class_are_counted_by_colour() -> None:
    things = [thing("dog"), thing("dog", color="red"), thing("dog")]
    assert caption_forms(things, SIZE)[0] == "two dogs and a red dog"


def test_an_empty_scene_has_one_form() -> None:
    assert caption_forms([], SIZE) == ["an empty picture"]


@given(SCENES)
def test_every_scene_has_its_captions(names_per_image: list[list[str]]) -> None:
    captions = augment_captions(scenes_of(names_per_image))
    assert all("caption" not in image for image in captions["images"])
    counts = Counter(annotation["image_id"] for annotation in captions["annotations"])
    assert counts == dict.fromkeys(range(1, len(names_per_image) + 1), NUM_CAPTIONS)


def test_some_captions_have_another_form() -> None:
    captions = augment_captions(scenes_of([["dog", "apple", "bus", "cat"]] * 5))
    assert len({annotation["caption"] for annotation in captions["annotations"]}) > 2


@given(SCENES)
def test_answers_are_true_and_balanced(names_per_image: list[list[str]]) -> None:
    for image_id, questions in augmented_questions(scenes_of(names_per_image)).items():
        questions = [pair for pair in questions if not pair[0].startswith("what")]
        counts = Counter(names_per_image[image_id - 1])
        for question, answer in questions:
            [name] = [
                name
                for name in NAMES
                if any(f" {form} " in question.replace("?", " ") for form in forms_of(name))
            ]
            if question.startswith("how many"):
                assert answer == str(counts[name])
            else:
                assert answer == ("yes" if counts[name] else "no")
        answers = Counter(answer for _, answer in questions)
        assert answers["yes"] == answers["no"]
        assert {str(count) for count in counts.values() if count > 1} <= set(answers)


def forms_of(name: str) -> tuple[str, str]:
    return with_article(name), plural(name)
