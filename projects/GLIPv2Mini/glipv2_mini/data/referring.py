"""Referring phrases: "the left apple", "the dog at the top", "the red car", "the dog".

They are derived from the annotations of a split. Two or three objects of a class have phrases that
distinguish them, by place, size or colour, where the relation is clear; to these comes a share of
phrases for objects that are the only ones of their class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glipv2_mini.data.relations import largest_of, order_along, smallest_of
from glipv2_mini.data.scene_text import Thing, things_per_image

UNIQUE_SHARE = 0.3
"""Share of the phrases for an object without another of its class."""
MAX_GROUP = 3
"""Larger groups have no phrases."""
SEED = 20
# Axis -> wordings for the first object and for the last one along it.
SIDES: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: (
        ("the left {name}", "the {name} on the left"),
        ("the right {name}", "the {name} on the right"),
    ),
    1: (
        ("the upper {name}", "the {name} at the top"),
        ("the lower {name}", "the {name} at the bottom"),
    ),
}
MIDDLE = "the {name} in the middle"

Phrase = tuple[str, int]
"""A phrase and the index of the object it refers to."""
ScenePhrase = tuple[dict[str, Any], str, dict[str, Any]]
"""An image, a phrase and the annotation of the object it refers to."""


def group_phrases(
    things: Sequence[Thing], size: tuple[int, int], rng: np.random.Generator
) -> list[Phrase]:
    """The phrases that distinguish two or three objects of one class.

    Each relation is worded in one of its ways.

    Args:
        things: the objects.
        size: (w, h) of the image.
    """
    phrases: list[Phrase] = []
    name = things[0].name
    for axis, sides in SIDES.items():
        order = order_along(axis, things, size)
        if order is None:
            continue
        for wordings, index in zip(sides, (order[0], order[-1]), strict=True):
            phrases.append((wordings[rng.integers(len(wordings))].format(name=name), index))
        if axis == 0 and len(order) == MAX_GROUP:
            phrases.append((MIDDLE.format(name=name), order[1]))
    larger, smaller = ("larger", "smaller") if len(things) == 2 else ("largest", "smallest")
    for word, extreme in ((larger, largest_of(things)), (smaller, smallest_of(things))):
        if extreme is not None:
            phrases.append((f"the {word} {name}", extreme))
    # An object without a known colour may have any.
    if all(item.color is not None for item in things):
        colors = [item.color for item in things]
        phrases += [
            (f"the {item.colored_name}", i)
            for i, item in enumerate(things)
            if colors.count(item.color) == 1
        ]
    return phrases


def unique_phrase(thing: Thing, rng: np.random.Generator) -> str:
    """A phrase for the only object of its class, with its colour in half of the cases."""
    name = thing.colored_name if rng.random() < 0.5 else thing.name
    return f"the {name}"


def referring_phrases(content: dict[str, Any]) -> Iterator[ScenePhrase]:
    """The image, phrase and annotation of every phrase, in the order of the images.

    Args:
        content: of a split's file in COCO's format; boxes are XYWH in pixels.
    """
    things_of = things_per_image(content)
    annotations_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in things_of}
    for annotation in content["annotations"]:
        annotations_of[annotation["image_id"]].append(annotation)
    relational: list[tuple[int, ScenePhrase]] = []
    unique: list[tuple[int, ScenePhrase]] = []
    for place, image in enumerate(content["images"]):
        rng = np.random.default_rng([SEED, image["id"]])
        things, annotations = things_of[image["id"]], annotations_of[image["id"]]
        for name in sorted({item.name for item in things}):
            members = [i for i, item in enumerate(things) if item.name == name]
            group = [things[i] for i in members]
            if len(group) == 1:
                phrase = unique_phrase(group[0], rng)
                unique.append((place, (image, phrase, annotations[members[0]])))
            elif len(group) <= MAX_GROUP:
                relational += [
                    (place, (image, phrase, annotations[members[index]]))
                    for phrase, index in group_phrases(
                        group, (image["width"], image["height"]), rng
                    )
                ]
    count = round(len(relational) * UNIQUE_SHARE / (1 - UNIQUE_SHARE))
    chosen = np.random.default_rng(SEED).permutation(len(unique))[:count]
    phrases = relational + [unique[i] for i in chosen]
    # The sort is stable: the phrases of an image keep their order.
    yield from (phrase for _, phrase in sorted(phrases, key=lambda pair: pair[0]))


def referring_file(content: dict[str, Any]) -> dict[str, Any]:
    """The phrases of a split in MDETR's form of RefCOCO (field names from its converter).

    An entry of ``images`` is one phrase, its ``caption``, with one annotation: the box and mask of
    the object. ``original_id`` is the id in the file of the split.

    Args:
        content: of the split's file.
    """
    images, annotations = [], []
    for number, (image, phrase, target) in enumerate(referring_phrases(content), start=1):
        whole = [[0, len(phrase)]]
        images.append(
            {
                **{key: image[key] for key in ("file_name", "height", "width")},
                "id": number,
                "original_id": image["id"],
                "caption": phrase,
                "dataset_name": "scenes",
                "tokens_negative": whole,
            }
        )
        keys = ("area", "iscrowd", "category_id", "bbox", "segmentation")
        annotations.append(
            {
                **{key: target[key] for key in keys},
                "id": number,
                "image_id": number,
                "original_id": target["id"],
                "tokens_positive": whole,
            }
        )
    return {"images": images, "annotations": annotations, "categories": content["categories"]}
