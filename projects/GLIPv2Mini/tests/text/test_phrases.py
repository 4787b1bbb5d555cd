"""The parts of referring phrases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.modeling.class_evidence import split_synonyms
from glipv2_mini.modeling.evidence_rpn import imagenet_class_names
from glipv2_mini.modeling.nanodet import coco_class_names
from glipv2_mini.text.phrases import COLOR_NAMES, PhraseParts, parse_phrase

WORDS = (
    *("the", "a", "This", "left", "biggest", "red", "Grey", "other", "dog", "orange", "of", "in"),
    *("on", "front", "left of", "with", "cup", "3", "-", "it's", "café", "\t", ".", "İ"),
)


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("dog", "dog"),
        ("The Dog", "dog"),
        ("the left apple", "apple"),
        ("a big brown teddy bear", "teddy bear"),
        ("the man in the white shirt", "man"),
        ("man on left", "man"),
        ("the woman who is holding a bag", "woman"),
        ("the second cup of tea", "second cup of tea"),
        ("an orange", "orange"),
        ("the red orange", "orange"),
        ("the orange orange", "orange"),
        ("black bear", "black bear"),
        ("left", "left"),
        ("the", "the"),
        ("the left", "left"),
        ("on the left", "on the left"),
        ("  the\n small   dog ", "dog"),
        ("", ""),
    ],
)
def test_the_name_is_without_article_description_and_place(phrase: str, name: str) -> None:
    assert parse_phrase(phrase).name == name


@pytest.mark.parametrize(
    ("phrase", "signs"),
    [
        ("the left apple", (-1, 0, 0)),
        ("the apple on the right", (1, 0, 0)),
        ("the top right apple", (1, -1, 0)),
        ("the apple at the bottom", (0, 1, 0)),
        ("the biggest dog", (0, 0, 1)),
        ("the smaller red book on the left", (-1, 0, -1)),
        ("the car in front", (0, 1, 1)),
        ("the car in the background", (0, -1, -1)),
        ("the middle apple", (0, 0, 0)),
        ("the car in front of the house", (0, 0, 0)),
        ("the dog to the left of the cat", (0, 0, 0)),
        # Class names: without an article the words before a name belong to it.
        ("left apple", (0, 0, 0)),
        ("big cat", (0, 0, 0)),
        # Words of words.
        ("the bright topping", (0, 0, 0)),
    ],
)
def test_the_direction_is_that_of_its_words(phrase: str, signs: tuple[int, int, int]) -> None:
    direction = parse_phrase(phrase).direction
    assert tuple((x > 0) - (x < 0) for x in direction) == signs


@pytest.mark.parametrize(
    ("phrase", "colors"),
    [
        ("the red apple", {"red"}),
        ("a grey cat", {"gray"}),
        ("the violet flower", {"purple"}),
        ("the black and white dog", {"black", "white"}),
        ("the man in the white shirt", {"white"}),
        ("the man in white", {"white"}),
        ("an orange", set()),
        ("the red orange", {"red"}),
        ("the orange orange", {"orange"}),
        ("black bear", set()),
        ("the redhead", set()),
        ("the apple", set()),
    ],
)
def test_colours_are_those_of_its_words(phrase: str, colors: set[str]) -> None:
    assert parse_phrase(phrase).colors == colors <= set(COLOR_NAMES)


@pytest.mark.parametrize("other", ["dog", "woman", "manhole", "old man"])
def test_the_description_does_not_depend_on_another_object_behind_it(other: str) -> None:
    """Also if its name contains the first name."""
    assert parse_phrase(f"the man in the red shirt near the {other}") == PhraseParts(
        "man", colors=frozenset({"red"})
    )
    assert parse_phrase(f"the man on the right near the {other}") == PhraseParts("man", (1, 0, 0))


@pytest.mark.parametrize("names", [coco_class_names, imagenet_class_names])
def test_class_names_are_their_own_name_without_description(names) -> None:
    for synonyms in names():
        for name in split_synonyms(synonyms):
            assert parse_phrase(name) == PhraseParts(name.lower())


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
def test_any_text_has_parts_and_a_name_from_it(phrase: str) -> None:
    parts = parse_phrase(phrase)
    words = phrase.lower().split()
    assert parts.name in " ".join(words)
    assert bool(parts.name) == bool(words)
    assert parts.colors <= set(COLOR_NAMES)
    assert parse_phrase(f" {phrase}\n") == parts == parse_phrase(" ".join(phrase.lower().split()))


@settings(deadline=None)
@given(st.sampled_from(COLOR_NAMES), st.sampled_from(["left", "right", "top"]), st.booleans())
def test_place_and_colour_may_be_before_or_after_the_name(
    color: str, side: str, is_before: bool
) -> None:
    expected = parse_phrase(f"the {side} {color} box")
    assert expected.name == "box" and any(expected.direction)
    phrase = f"the {color} {side} box" if is_before else f"the {color} box on the {side}"
    assert parse_phrase(phrase) == expected
    assert expected.colors == {color}
