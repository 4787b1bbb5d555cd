"""The objects of a scene as texts mention them, and the nouns for them."""

from __future__ import annotations

import csv
import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glipv2_d2.data.composed_dataset import NUMBERS
from glipv2_mini.text.articles import article_of

KINDS_FILE = Path(__file__).parents[1] / "assets" / "name_kinds.tsv"
# Plural nouns, which take no article.
PLURAL_ONLY = {"binoculars", "grapes", "pants", "pliers", "scissors"}
IRREGULAR_PLURALS = {
    **{noun: noun for noun in ("bison", "chamois", "deer", "fish", "sheep", "shrimp")},
    "goose": "geese",
    "mouse": "mice",
    "potato": "potatoes",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "woodlouse": "woodlice",
}


@dataclass(frozen=True)
class Thing:
    """An object of a scene, without its pixels.

    Attributes:
        name: its class name.
        box: XYWH in pixels.
        area: its visible pixels.
        color: the colour it was tinted in; None: unknown.
    """

    name: str
    box: tuple[float, float, float, float]
    area: float
    color: str | None = None

    @property
    def center_x(self) -> float:
        """X of the centre of the box, in pixels."""
        return self.box[0] + self.box[2] / 2

    @property
    def colored_name(self) -> str:
        """The name, after the colour if that is known."""
        return self.name if self.color is None else f"{self.color} {self.name}"


def things_per_image(scenes: Mapping[str, Any]) -> dict[int, list[Thing]]:
    """The objects of each image id, in the order of the annotations.

    Args:
        scenes: annotations in COCO's form, with the ``color`` of tinted objects.
    """
    name_of = {category["id"]: category["name"] for category in scenes["categories"]}
    things: defaultdict[int, list[Thing]] = defaultdict(list)
    for item in scenes["annotations"]:
        x, y, width, height = item["bbox"]
        name, color = name_of[item["category_id"]], item.get("color")
        things[item["image_id"]].append(Thing(name, (x, y, width, height), item["area"], color))
    return {image["id"]: things[image["id"]] for image in scenes["images"]}


@functools.cache
def kinds_of_names() -> dict[str, tuple[str, ...]]:
    """The kinds of class names that have one: "bee" is an insect and an animal."""
    with KINDS_FILE.open(encoding="utf8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["name"]: tuple(row["kinds"].split(",")) for row in rows}


def noun_phrase(name: str, count: int) -> str:
    """The noun phrase for ``count`` objects of a class.

    >>> noun_phrase("apple", 1), noun_phrase("goose", 2), noun_phrase("scissors", 1)
    ('an apple', 'two geese', 'scissors')
    """
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def with_article(name: str) -> str:
    """The singular noun phrase of a class name.

    >>> with_article("apple"), with_article("dog"), with_article("scissors")
    ('an apple', 'a dog', 'scissors')
    """
    return name if is_plural_only(name) else f"{article_of(name)} {name}"


def is_plural_only(name: str) -> bool:
    """Whether a class name is a plural noun.

    >>> is_plural_only("red scissors"), is_plural_only("bus")
    (True, False)
    """
    return name.split()[-1] in PLURAL_ONLY


def verb_for(name: str) -> str:
    """The verb for one object of a class.

    >>> verb_for("dog"), verb_for("scissors")
    ('is', 'are')
    """
    return "are" if is_plural_only(name) else "is"


def plural(name: str) -> str:
    """The plural of a class name or kind.

    >>> [plural(name) for name in ("dog", "box", "cherry", "sheep", "red goose", "scissors")]
    ['dogs', 'boxes', 'cherries', 'sheep', 'red geese', 'scissors']
    >>> plural("piece of food")
    'pieces of food'
    """
    head, of, rest = name.partition(" of ")
    *adjectives, noun = head.split()
    return " ".join([*adjectives, _plural_noun(noun)]) + of + rest


def _plural_noun(noun: str) -> str:
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun if noun in PLURAL_ONLY else f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
