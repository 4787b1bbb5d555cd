"""What is said and asked further of scenes is true of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.scenes.language import describe, plural, with_article
from glipv2_d2.data.scenes.retelling import ask_further, retell

NAMES = ("dog", "apple", "bus", "fish", "cherry", "scissors", "cat")


def scenes_of(names_per_image: list[list[str]]) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "caption": "old"}
            for i in range(1, len(names_per_image) + 1)
        ],
        "annotations": [
            # From right to left, and all about as wide.
            {"image_id": i, "category_id": NAMES.index(name), "bbox": [-10 * k, 0, 4 + k, 4]}
            for i, names in enumerate(names_per_image, start=1)
            for k, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }


SCENES = st.lists(st.lists(st.sampled_from(NAMES), max_size=5), max_size=4)


@given(SCENES)
def test_retold_captions_say_the_same_in_some_order(names_per_image: list[list[str]]) -> None:
    retold = retell(scenes_of(names_per_image))
    assert all("caption" not in image for image in retold["images"])
    for annotation in retold["annotations"]:
        names = names_per_image[annotation["image_id"] - 1]
        own = describe(names)[0]
        assert _words(annotation["caption"]) == _words(own)


def _words(caption: str) -> Counter[str]:
    return Counter(caption.replace(",", " and").replace(" and", " ").split())


def test_some_captions_have_another_order() -> None:
    retold = retell(scenes_of([["dog", "apple", "bus", "cat"]] * 5))
    assert len({annotation["caption"] for annotation in retold["annotations"]}) > 2


@given(SCENES)
def test_further_answers_are_true_and_balanced(names_per_image: list[list[str]]) -> None:
    for image_id, questions in ask_further(scenes_of(names_per_image)).items():
        questions = [asked for asked in questions if not asked[0].startswith("what")]
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
def test_the_one_thing_left_of_another_is_asked(names_per_image: list[list[str]]) -> None:
    further = ask_further(scenes_of(names_per_image))
    for names, questions in zip(names_per_image, further.values(), strict=True):
        places = [asked for asked in questions if asked[0].startswith("what is left")]
        expected = []
        if len(names) > 2 and names.count(names[-2]) == 1:
            expected = [(f"what is left of the {names[-2]}?", names[-1])]
        assert places == expected


@given(SCENES)
def test_what_is_there_is_asked_where_it_is_one_thing(names_per_image: list[list[str]]) -> None:
    further = ask_further(scenes_of(names_per_image))
    for names, questions in zip(names_per_image, further.values(), strict=True):
        answers = [
            answer for question, answer in questions if question == "what is in the picture?"
        ]
        assert answers == (names if len(names) == 1 else [])
