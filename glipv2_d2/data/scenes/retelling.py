"""More to learn of scenes that are there: their captions retold, and further questions.

A scene's caption names its things in one order of many, and a few questions are asked of it. Here
are others, derived from the annotations alone; for training, so that no split changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glipv2_d2.data.scenes.language import describe, plural, with_article

NUM_RETOLD = 2
"""Further captions of a scene."""
NUM_PRESENCE = 3
"""Names whose presence is asked, and as many absent ones."""
NUM_PLACES = 1
"""Things of a scene of three or more of which it is asked what is left of them."""
NUM_THINGS = 1
"""Things of a scene of which it is asked what they are."""


def retell(scenes: Mapping[str, Any]) -> dict[str, Any]:
    """Captions in COCO's form that name the things of each scene in other orders.

    Args:
        scenes: annotations in COCO's form.
    """
    names_of = _names_per_image(scenes)
    annotations: list[dict[str, Any]] = []
    for image in scenes["images"]:
        rng = np.random.default_rng([NUM_RETOLD, image["id"]])
        names = names_of[image["id"]]
        # Things of one name are named together, so it is names that change places.
        different = list(dict.fromkeys(names))
        for _ in range(NUM_RETOLD):
            order = {different[i]: place for place, i in enumerate(rng.permutation(len(different)))}
            caption, _ = describe(sorted(names, key=order.__getitem__))
            ids = {"id": len(annotations) + 1, "image_id": image["id"]}
            annotations.append({**ids, "caption": caption})
    images = [{k: v for k, v in image.items() if k != "caption"} for image in scenes["images"]]
    return {"images": images, "annotations": annotations}


def ask_further(scenes: Mapping[str, Any]) -> dict[int, list[tuple[str, str]]]:
    """Per image id questions and answers: as many "yes" as "no", and more twos than by chance.

    What is left of a thing is asked where one thing is: that of the second from the left. What is
    in the picture is asked where that is one thing.

    Args:
        scenes: annotations in COCO's form.
    """
    names_of = _names_per_image(scenes)
    centers_of = _centers_per_image(scenes)
    all_names = [category["name"] for category in scenes["categories"]]
    questions = {}
    for image in scenes["images"]:
        rng = np.random.default_rng([NUM_PRESENCE, image["id"]])
        names = names_of[image["id"]]
        asked = _ask(Counter(names), all_names, rng)
        questions[image["id"]] = [
            *(*asked, *_ask_places(names, centers_of[image["id"]])),
            *_ask_things(names),
        ]
    return questions


def _ask(
    counts: Counter[str], all_names: Sequence[str], rng: np.random.Generator
) -> list[tuple[str, str]]:
    present = [sorted(counts)[i] for i in rng.permutation(len(counts))]
    absent = [name for name in all_names if name not in counts]
    missing = [absent[i] for i in rng.permutation(len(absent))[:NUM_PRESENCE]]
    asked = [(name, "yes") for name in present[: len(missing)]][:NUM_PRESENCE]
    asked += [(name, "no") for name in missing[: len(asked)]]
    questions = [(f"is there {with_article(n)} in the picture?", answer) for n, answer in asked]
    several = [name for name in present if counts[name] > 1]
    # Most things are alone: one of these for every name that has several, or one.
    alone = [name for name in present if counts[name] == 1][: max(1, len(several))]
    return questions + [
        (f"how many {plural(name)} are in the picture?", str(counts[name]))
        for name in (*several, *alone)
    ]


def _ask_places(names: Sequence[str], centers: Sequence[float]) -> list[tuple[str, str]]:
    in_order = [names[i] for i in np.argsort(centers)]
    # With two things, the scene's own questions ask it.
    if len(in_order) < 3:
        return []
    left, right = in_order[:2]
    return [(f"what is left of the {right}?", left)] if names.count(right) == 1 else []


def _ask_things(names: Sequence[str]) -> list[tuple[str, str]]:
    return [("what is in the picture?", names[0])] if len(names) == NUM_THINGS else []


def _centers_per_image(scenes: Mapping[str, Any]) -> dict[int, list[float]]:
    """Where each thing is from left to right: x of its centre, in pixels."""
    centers: dict[int, list[float]] = {image["id"]: [] for image in scenes["images"]}
    for annotation in scenes["annotations"]:
        x, _, width, _ = annotation["bbox"]
        centers[annotation["image_id"]].append(x + width / 2)
    return centers


def _names_per_image(scenes: Mapping[str, Any]) -> dict[int, list[str]]:
    name_of = {category["id"]: category["name"] for category in scenes["categories"]}
    names: dict[int, list[str]] = {image["id"]: [] for image in scenes["images"]}
    for annotation in scenes["annotations"]:
        names[annotation["image_id"]].append(name_of[annotation["category_id"]])
    return names
