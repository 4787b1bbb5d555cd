"""Augmented captions and questions are true of their scenes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.composed_dataset import scene_caption
from glipv2_mini.data.augmentation import augment_captions, augmented_questions
from glipv2_mini.data.scene_text import noun_phrase, plural, with_article

NAMES = ("dog", "apple", "bus", "fish", "cherry", "scissors", "cat")


def scenes_of(names_per_image: list[list[str]]) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "caption": "old"}
            for i in range(1, len(names_per_image) + 1)
        ],
        "annotations": [
            # From right to left, of similar width.
            {"image_id": i, "category_id": NAMES.index(name), "bbox": [-10 * k, 0, 4 + k, 4]}
            for i, names in enumerate(names_per_image, start=1)
            for k, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }


SCENES = st.lists(st.lists(st.sampled_from(NAMES), max_size=5), max_size=4)


@given(SCENES)
def test_captions_mention_the_same_objects(names_per_image: list[list[str]]) -> None:
    captions = augment_captions(scenes_of(names_per_image))
    assert all("caption" not in image for image in captions["images"])
    for annotation in captions["annotations"]:
        names = names_per_image[annotation["image_id"] - 1]
        own = scene_caption(names, noun_phrase)[0]
        assert _words(annotation["caption"]) == _words(own)


def _words(caption: str) -> Counter[str]:
    return Counter(caption.replace(",", " and").replace(" and", " ").split())


def test_some_captions_have_another_order() -> None:
    captions = augment_captions(scenes_of([["dog", "apple", "bus", "cat"]] * 5))
    assert len({annotation["caption"] for annotation in captions["annotations"]}) > 2


@given(SCENES)
def test_answers_are_true_and_balanced(names_per_image: list[list[str]]) -> None:
    for image_id, questions in augmented_questions(scenes_of(names_per_image)).items():
        questions = [pair for pair in questions if not pair[0].startswith("what")]
        counts = Counter(names_per_image[image_id - 1])
        true = {}
        for name in NAMES:
            is_there = "yes" if counts[name] else "no"
            true[f"is there {with_article(name)} in the picture?"] = is_there
            true[f"how many {plural(name)} are in the picture?"] = str(counts[name])
        assert all(true[question] == answer for question, answer in questions)
        assert len({question for question, _ in questions}) == len(questions)
        answers = Counter(answer for _, answer in questions)
        assert answers["yes"] == answers["no"]
        assert {str(count) for count in counts.values() if count > 1} <= set(answers)


@given(SCENES)
def test_the_location_question_is_about_the_second_object(names_per_image: list[list[str]]) -> None:
    questions_of = augmented_questions(scenes_of(names_per_image))
    for names, questions in zip(names_per_image, questions_of.values(), strict=True):
        places = [pair for pair in questions if pair[0].startswith("what is left")]
        expected = []
        if len(names) > 2 and names.count(names[-2]) == 1:
            expected = [(f"what is left of the {names[-2]}?", names[-1])]
        assert places == expected


@given(SCENES)
def test_scenes_of_one_object_have_a_naming_question(names_per_image: list[list[str]]) -> None:
    questions_of = augmented_questions(scenes_of(names_per_image))
    for names, questions in zip(names_per_image, questions_of.values(), strict=True):
        answers = [
            answer for question, answer in questions if question == "what is in the picture?"
        ]
        assert answers == (names if len(names) == 1 else [])
