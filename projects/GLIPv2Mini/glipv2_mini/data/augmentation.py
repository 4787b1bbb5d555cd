"""Caption and question augmentation: more captions and questions of composed scenes, for training.

They are derived from the annotations alone, so that the images and files of a split stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glipv2_d2.data.composed_dataset import Question
from glipv2_mini.data.questions import make_questions
from glipv2_mini.data.relations import are_near
from glipv2_mini.data.scene_text import Thing, noun_phrase, things_per_image, with_article

NUM_CAPTIONS = 2
"""Captions per scene."""
NUM_PRESENCE = 3
"""Presence questions per scene with the answer "yes", and with "no"."""
NUM_LARGEST = 2
"""Classes in a short caption of a scene with more."""


def augment_captions(scenes: Mapping[str, Any]) -> dict[str, Any]:
    """Captions in COCO's form, of different forms and with colours; the largest object comes first.

    Args:
        scenes: annotations in COCO's form, ordered by area in each image.
    """
    things_of = things_per_image(scenes)
    annotations: list[dict[str, Any]] = []
    for image in scenes["images"]:
        rng = np.random.default_rng([NUM_CAPTIONS, image["id"]])
        forms = caption_forms(things_of[image["id"]], (image["width"], image["height"]))
        # Few objects have few forms, which are repeated.
        order = [*rng.permutation(len(forms)), *rng.integers(len(forms), size=NUM_CAPTIONS)]
        for i in order[:NUM_CAPTIONS]:
            ids = {"id": len(annotations) + 1, "image_id": image["id"]}
            annotations.append({**ids, "caption": forms[i]})
    images = [{k: v for k, v in image.items() if k != "caption"} for image in scenes["images"]]
    return {"images": images, "annotations": annotations}


def caption_forms(things: Sequence[Thing], size: tuple[int, int]) -> list[str]:
    """The captions that are true of a scene.

    Args:
        things: the objects, by area.
        size: (w, h) of the image.
    """
    if not things:
        return ["an empty picture"]
    names = [item.name for item in things]
    colored = enumerate_things([item.colored_name for item in things])
    classes = list(dict.fromkeys(names))
    forms = [colored, f"a photo of {colored}", f"a picture of {colored}"]
    if len(classes) > NUM_LARGEST:
        largest = classes[:NUM_LARGEST]
        forms.append(enumerate_things([name for name in names if name in largest]))
    if len(things) == len(classes) == 2 and are_near(things[0], things[1], size):
        first, second = (with_article(item.colored_name) for item in things)
        forms.append(f"{first} next to {second}")
    return list(dict.fromkeys(forms))


def enumerate_things(names: Sequence[str]) -> str:
    """The noun phrases of names, each counted at its first mention.

    >>> enumerate_things(["dog", "red car", "dog", "apple"])
    'two dogs, a red car and an apple'
    """
    phrases = [noun_phrase(name, count) for name, count in Counter(names).items()]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)


def augmented_questions(scenes: Mapping[str, Any]) -> dict[int, list[Question]]:
    """More questions and answers per image id, as many with the answer "yes" as with "no".

    Args:
        scenes: annotations in COCO's form.
    """
    things_of = things_per_image(scenes)
    all_names = [category["name"] for category in scenes["categories"]]
    return {
        image["id"]: make_questions(
            things_of[image["id"]],
            (image["width"], image["height"]),
            all_names,
            np.random.default_rng([NUM_PRESENCE, image["id"]]),
            num_presence=NUM_PRESENCE,
        )
        for image in scenes["images"]
    }
