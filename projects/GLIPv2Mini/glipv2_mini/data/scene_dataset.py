"""The dataset of composed scenes, with the files derived from its annotations.

Beside the files of :mod:`glipv2_d2.data.composed_dataset`, ``<split>_referring.json`` has a phrase
for one object, in MDETR's form; ``<split>_augmented_captioning.json`` has more
captions, in COCO's form; ``<split>_augmented_{questions,answers}.json`` have more questions, in
VQAv2's form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glipv2_d2.data.composed_dataset import (
    Question,
    SceneSplit,
    vqa_files,
    write_json,
    write_split,
)
from glipv2_d2.data.composition import Scene
from glipv2_mini.data.augmentation import (
    NUM_CAPTIONS,
    NUM_LARGEST,
    NUM_PRESENCE,
    augment_captions,
    augmented_questions,
)
from glipv2_mini.data.questions import make_questions
from glipv2_mini.data.referring import UNIQUE_SHARE, referring_file
from glipv2_mini.data.relations import MAX_GAP, MIN_AREA_RATIO, MIN_DISTANCE
from glipv2_mini.data.scene_text import Thing

Derive = Callable[[dict[str, Any]], dict[str, Any]]
"""Annotations in COCO's form -> the contents of a file, without its ``info``."""


def scene_questions(
    scene: Scene, category_names: Sequence[str], rng: np.random.Generator
) -> list[Question]:
    """Random questions about a scene, see :func:`~glipv2_mini.data.questions.make_questions`."""
    things = []
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        box = (x1, y1, x2 - x1, y2 - y1)
        things.append(Thing(item.name, box, int(item.mask.sum()), item.color))
    return make_questions(things, scene.image.size, category_names, rng)


def write_scenes(split: SceneSplit, root: Path, *, workers: int = 1) -> Path:
    """Write a split and the files derived from it (:data:`DERIVED`), those that are missing.

    Returns:
        the annotation file.
    """
    annotation_file = write_split(split, root, workers=workers)
    for ending, (settings, derive) in DERIVED.items():
        _write_derived(annotation_file, ending, settings, derive)
    return annotation_file


def _write_derived(
    annotation_file: Path, ending: str, settings: Mapping[str, Any], derive: Derive
) -> None:
    """Write a derived file, unless it exists and belongs to these annotations and settings."""
    path = annotation_file.with_name(f"{annotation_file.stem}{ending}.json")
    annotations = annotation_file.read_bytes()
    info = {"annotations_sha256": hashlib.sha256(annotations).hexdigest(), **settings}
    if path.is_file() and json.loads(path.read_text(encoding="utf8")).get("info") == info:
        return
    write_json(path, {"info": info, **derive(json.loads(annotations))})


def _augmented_questions(scenes: Mapping[str, Any]) -> dict[str, Any]:
    return vqa_files(augmented_questions(scenes))["_questions"]


def _augmented_answers(scenes: Mapping[str, Any]) -> dict[str, Any]:
    return vqa_files(augmented_questions(scenes))["_answers"]


_RELATIONS = {
    "min_distance": MIN_DISTANCE,
    "min_area_ratio": MIN_AREA_RATIO,
    "max_gap": MAX_GAP,
}
_QUESTION_SETTINGS = {"num_presence": NUM_PRESENCE, **_RELATIONS}
DERIVED: dict[str, tuple[dict[str, Any], Derive]] = {
    "_referring": ({"unique_share": UNIQUE_SHARE, **_RELATIONS}, referring_file),
    "_augmented_captioning": (
        {"num_captions": NUM_CAPTIONS, "num_largest": NUM_LARGEST, **_RELATIONS},
        augment_captions,
    ),
    "_augmented_questions": (_QUESTION_SETTINGS, _augmented_questions),
    "_augmented_answers": (_QUESTION_SETTINGS, _augmented_answers),
}
"""Endings of derived files -> the settings they depend on, and the function that derives them."""
