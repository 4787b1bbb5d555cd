"""Caption and question augmentation: more captions and questions of composed scenes, for training.

They are derived from the annotations alone, so that the images and files of a split stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glipv2_d2.data.composed_dataset import Question, scene_caption
from glipv2_mini.data.scene_text import noun_phrase, plural, with_article

NUM_CAPTIONS = 2
"""Captions per scene."""
NUM_PRESENCE = 3
"""Presence questions per scene with the answer "yes", and with "no"."""
NUM_PLACES = 1
"""Location questions per scene of three or more objects."""
NUM_THINGS = 1
"""The number of objects of scenes with the question "what is in the picture?"."""


def augment_captions(scenes: Mapping[str, Any]) -> dict[str, Any]:
    """Captions in COCO's form that mention the objects of each scene in a random order.

    Args:
        scenes: annotations in COCO's form.
    """
    names_of = _names_per_image(scenes)
    annotations: list[dict[str, Any]] = []
    for image in scenes["images"]:
        rng = np.random.default_rng([NUM_CAPTIONS, image["id"]])
        names = names_of[image["id"]]
        # A caption counts the objects of a class together, so the classes are permuted.
        classes = list(dict.fromkeys(names))
        for _ in range(NUM_CAPTIONS):
            order = {classes[i]: place for place, i in enumerate(rng.permutation(len(classes)))}
            caption, _ = scene_caption(sorted(names, key=order.__getitem__), noun_phrase)
            ids = {"id": len(annotations) + 1, "image_id": image["id"]}
            annotations.append({**ids, "caption": caption})
    images = [{k: v for k, v in image.items() if k != "caption"} for image in scenes["images"]]
    return {"images": images, "annotations": annotations}


def augmented_questions(scenes: Mapping[str, Any]) -> dict[int, list[Question]]:
    """Questions and answers per image id.

    There are as many presence questions with the answer "yes" as with "no", and one "how many" with
    the answer 1 per class of several objects. The location question is about the second object
    from the left.

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
        questions[image["id"]] = [
            *_count_questions(Counter(names), all_names, rng),
            *_location_questions(names, centers_of[image["id"]]),
            *_naming_questions(names),
        ]
    return questions


def _count_questions(
    counts: Counter[str], all_names: Sequence[str], rng: np.random.Generator
) -> list[Question]:
    """Presence and number of objects."""
    present = [sorted(counts)[i] for i in rng.permutation(len(counts))]
    absent = [name for name in all_names if name not in counts]
    negatives = [absent[i] for i in rng.permutation(len(absent))[:NUM_PRESENCE]]
    presence = [(name, "yes") for name in present[: len(negatives)]][:NUM_PRESENCE]
    presence += [(name, "no") for name in negatives[: len(presence)]]
    questions = [(f"is there {with_article(n)} in the picture?", answer) for n, answer in presence]
    several = [name for name in present if counts[name] > 1]
    # Most classes have one object: balance the answers.
    single = [name for name in present if counts[name] == 1][: max(1, len(several))]
    return questions + [
        (f"how many {plural(name)} are in the picture?", str(counts[name]))
        for name in (*several, *single)
    ]


def _location_questions(names: Sequence[str], centers: Sequence[float]) -> list[Question]:
    in_order = [names[i] for i in np.argsort(centers)]
    # A scene of two objects has this question already.
    if len(in_order) < 3:
        return []
    left, right = in_order[:2]
    return [(f"what is left of the {right}?", left)] if names.count(right) == 1 else []


def _naming_questions(names: Sequence[str]) -> list[Question]:
    return [("what is in the picture?", names[0])] if len(names) == NUM_THINGS else []


def _centers_per_image(scenes: Mapping[str, Any]) -> dict[int, list[float]]:
    """X of the centre of each object, in pixels."""
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
