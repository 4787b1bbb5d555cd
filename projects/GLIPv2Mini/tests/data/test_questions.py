"""Questions about a scene: true answers, balanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from glipv2_mini.data.cutouts import stamp_entries
from glipv2_mini.data.questions import (
    color_questions,
    count_questions,
    location_questions,
    main_name,
    make_questions,
    naming_questions,
    presence_questions,
    question_type,
)
from glipv2_mini.data.scene_text import Thing, kinds_of_names

SIZE = (100, 100)


def thing(name: str, x: int = 0, side: int = 20, color: str | None = None) -> Thing:
    return Thing(name, (x, 0, side, side), side * side, color)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_wording_has_as_many_yes_as_no() -> None:
    wordings: dict[str, Counter[str]] = {}
    for seed in range(40):
        counts = Counter({"dog": 2, "cat": 1})
        for question, answer in presence_questions(counts, ["bus", "cat", "dog"], rng(seed), 1):
            pattern = question.replace(" a ", " ")
            for name in ("dogs", "dog", "cats", "cat", "buses", "bus"):
                pattern = pattern.replace(name, "X")
            wordings.setdefault(pattern, Counter())[answer] += 1
            assert answer == ("no" if "bus" in question else "yes")
    assert len(wordings) == 4
    assert all(answers["yes"] == answers["no"] for answers in wordings.values())


def test_large_numbers_are_asked_in_more_ways() -> None:
    questions = count_questions(Counter({"dog": 4, "cat": 2}), rng())
    assert Counter(answer for _, answer in questions) == {"4": 3, "2": 1}
    assert all(("dogs" in question) == (answer == "4") for question, answer in questions)


def test_one_object_is_rarely_counted() -> None:
    questions = [count_questions(Counter({"dog": 1}), rng(seed)) for seed in range(200)]
    assert 0.04 < np.mean([bool(some) for some in questions]) < 0.2


@pytest.mark.parametrize(
    ("things", "name"),
    [
        ([thing("dog")], "dog"),
        ([thing("dog", side=14)], None),
        ([thing("dog"), thing("dog", 50)], "dog"),
        ([thing("dog", side=60), thing("cat", 70, side=20)], "dog"),
        ([thing("dog", side=60), thing("cat", 70, side=40)], None),
        ([thing("dog", side=30), thing("cat", 70, side=10)], None),
        ([], None),
    ],
)
def test_the_main_object_is_alone_or_large(things: list[Thing], name: str | None) -> None:
    assert main_name(things, SIZE) == name


def test_an_object_is_named_under_its_kinds() -> None:
    questions = {
        question
        for seed in range(30)
        for question, answer in naming_questions([thing("bee")], SIZE, rng(seed))
        if answer == "bee"
    }
    assert questions == {
        *("what is this?", "what is in the picture?"),
        *("what insect is this?", "what animal is this?"),
    }


def test_several_objects_are_asked_for_in_the_plural() -> None:
    things = [thing("cherry"), thing("cherry", 50)]
    questions = {q for seed in range(30) for q, _ in naming_questions(things, SIZE, rng(seed))}
    assert questions == {"what are these?", "what is in the picture?", "what fruits are these?"}


def test_the_colour_of_the_only_tinted_object_is_asked() -> None:
    things = [thing("dog", color="red"), thing("cat", 50)]
    assert color_questions(things, SIZE) == [("what color is the dog?", "red")]


def test_the_colours_of_a_pair_are_asked_by_side() -> None:
    things = [thing("dog", 70, color="red"), thing("dog", 0, color="blue")]
    assert color_questions(things, SIZE) == [
        ("what color is the dog on the left?", "blue"),
        ("what color is the dog on the right?", "red"),
    ]
    assert not color_questions([thing("dog", 0), thing("dog", 5, color="red")], SIZE)


def test_location_is_asked_of_the_second_object_from_the_left() -> None:
    things = [thing("dog", 80), thing("cat", 30), thing("bus", 0)]
    assert location_questions(things, SIZE) == [("what is left of the cat?", "bus")]


def test_location_is_not_asked_where_it_is_unclear() -> None:
    assert not location_questions([thing("dog", 0), thing("cat", 10)], SIZE)
    assert not location_questions([thing("dog", 0), thing("cat", 40), thing("cat", 80)], SIZE)


def test_an_empty_scene_has_no_questions() -> None:
    assert make_questions([], SIZE, ["bus"], rng()) == []


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("are there any dogs in the picture?", "are there"),
        ("what is in the picture?", "what is in"),
        ("what color is the dog?", "what color"),
        ("what insect is this?", "what"),
        ("why?", "other"),
    ],
)
def test_a_question_type_is_its_first_words(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_kinds_are_of_class_names() -> None:
    assert set(kinds_of_names()) <= {entry.name for entry in stamp_entries()}
