"""Synonyms and kinds of COCO's and ImageNet's classes."""

from __future__ import annotations

import pytest

from glipv2_d2.modeling.class_evidence import split_synonyms
from glipv2_mini.modeling.evidence_rpn import imagenet_class_names
from glipv2_mini.modeling.nanodet import coco_class_names
from glipv2_mini.text.class_kinds import (
    COCO_KINDS,
    COCO_SYNONYMS,
    IMAGENET_KINDS,
    coco_names_with_kinds,
    imagenet_names_with_kinds,
)

# Index, one of timm's names, kinds. First and last ones of a range, and their neighbours.
IMAGENET = [
    (0, "tench", {"animal", "fish"}),
    (2, "great white shark", {"animal", "shark"}),
    (4, "hammerhead", {"animal", "shark"}),
    (5, "electric ray", {"animal"}),
    (7, "cock", {"animal", "bird"}),
    (24, "great grey owl", {"animal", "bird"}),
    (25, "European fire salamander", {"animal"}),
    (30, "bullfrog", {"animal", "frog"}),
    (33, "loggerhead", {"animal", "turtle"}),
    (37, "box turtle", {"animal", "turtle"}),
    (48, "Komodo dragon", {"animal", "lizard"}),
    (49, "African crocodile", {"animal"}),
    (51, "triceratops", {"animal"}),
    (52, "thunder snake", {"animal", "snake"}),
    (68, "sidewinder", {"animal", "snake"}),
    (72, "black and gold garden spider", {"animal", "spider"}),
    (77, "wolf spider", {"animal", "spider"}),
    (80, "black grouse", {"animal", "bird"}),
    (100, "black swan", {"animal", "bird"}),
    (101, "tusker", {"animal"}),
    (118, "Dungeness crab", {"animal", "crab"}),
    (121, "king crab", {"animal", "crab"}),
    (127, "white stork", {"animal", "bird"}),
    (146, "albatross", {"animal", "bird"}),
    (147, "grey whale", {"animal", "whale"}),
    (150, "sea lion", {"animal"}),
    (151, "Chihuahua", {"animal", "dog"}),
    (207, "golden retriever", {"animal", "dog"}),
    (268, "Mexican hairless", {"animal", "dog"}),
    (269, "timber wolf", {"animal", "wolf"}),
    (277, "red fox", {"animal", "fox"}),
    (280, "grey fox", {"animal", "fox"}),
    (281, "tabby", {"animal", "cat"}),
    (285, "Egyptian cat", {"animal", "cat"}),
    (294, "brown bear", {"animal", "bear"}),
    (297, "sloth bear", {"animal", "bear"}),
    (300, "tiger beetle", {"animal", "insect", "beetle"}),
    (307, "weevil", {"animal", "insect", "beetle"}),
    (308, "fly", {"animal", "insect"}),
    (321, "admiral", {"animal", "insect", "butterfly"}),
    (323, "monarch", {"animal", "insect", "butterfly"}),
    (326, "lycaenid", {"animal", "insect", "butterfly"}),
    (327, "starfish", {"animal"}),
    (330, "wood rabbit", {"animal", "rabbit"}),
    (332, "Angora", {"animal", "rabbit"}),
    (340, "zebra", {"animal"}),
    (365, "orangutan", {"animal", "monkey"}),
    (382, "squirrel monkey", {"animal", "monkey"}),
    (385, "Indian elephant", {"animal", "elephant"}),
    (386, "African elephant", {"animal", "elephant"}),
    (389, "barracouta", {"animal", "fish"}),
    (397, "puffer", {"animal", "fish"}),
    (398, "abacus", set()),
    (404, "airliner", set()),
]


@pytest.fixture(scope="module")
def imagenet() -> list[str]:
    return imagenet_names_with_kinds(imagenet_class_names())


@pytest.mark.parametrize(("index", "name", "kinds"), IMAGENET, ids=[x[1] for x in IMAGENET])
def test_an_imagenet_class_has_its_kinds(
    imagenet: list[str], index: int, name: str, kinds: set[str]
) -> None:
    names, *others = imagenet[index].split("|")
    assert name in split_synonyms(names)
    assert set(others) == kinds and len(others) == len(kinds)


def test_the_kinds_of_imagenet_are_in_its_classes_only() -> None:
    indices = [i for ranges in IMAGENET_KINDS.values() for r in ranges for i in r]
    assert min(indices) == 0 and max(indices) < 1000


def test_synonyms_and_kinds_of_coco_are_those_of_its_classes() -> None:
    names = set(coco_class_names())
    assert COCO_SYNONYMS.keys() <= names
    assert {name for members in COCO_KINDS.values() for name in members} <= names


def test_no_synonym_or_kind_of_coco_is_the_name_of_another_class() -> None:
    names = set(coco_class_names())
    synonyms = {synonym for values in COCO_SYNONYMS.values() for synonym in values}
    assert not (synonyms | COCO_KINDS.keys()) & names


def test_the_names_of_a_class_are_its_own_then_synonyms_then_kinds() -> None:
    names = coco_names_with_kinds(coco_class_names())
    assert [split_synonyms(name)[0] for name in names] == coco_class_names()
    assert {name.split("|")[0]: name for name in names}["dog"] == "dog|puppy|animal"
    assert coco_names_with_kinds(["apple", "tie"]) == ["apple|food|fruit", "tie"]


def test_no_class_of_coco_has_a_name_twice() -> None:
    for name in coco_names_with_kinds(coco_class_names()):
        parts = split_synonyms(name)
        assert len(set(parts)) == len(parts)
