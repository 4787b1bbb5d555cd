"""Scenes as a data set on disk: COCO annotations, captions with spans, questions and answers.

``<split>.json`` has COCO's fields (images, annotations with RLE masks, categories), plus MDETR's
``caption`` of an image and ``tokens_positive`` of an annotation. ``<split>_questions.json`` and
``<split>_answers.json`` have VQAv2's fields. ``<split>_referring.json`` has a phrase for one of two
things of a name, in MDETR's form. Field names are from memory of the published files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from tqdm import tqdm

from glipv2_d2.data.scenes.backgrounds import load_photos, make_background
from glipv2_d2.data.scenes.compose import Scene, compose_scene
from glipv2_d2.data.scenes.cutouts import Cutout
from glipv2_d2.data.scenes.language import ask, describe
from glipv2_d2.data.scenes.referring import MIN_AREA_RATIO, MIN_DISTANCE, referring_file
from glipv2_d2.data.scenes.retelling import (
    NUM_PLACES,
    NUM_PRESENCE,
    NUM_RETOLD,
    NUM_THINGS,
    ask_further,
    retell,
)

JPEG_QUALITY = 90
ANSWERS_PER_QUESTION = 10  # VQAv2 has ten people answer; here all agree

Derive = Callable[[dict[str, Any]], dict[str, Any]]
"""Annotations in COCO's form -> what a file has besides its ``info``."""


@dataclass(frozen=True)
class SceneSplit:
    """A split of a data set of scenes.

    Attributes:
        name: of its files.
        num_images: how many scenes.
        size: (w, h) of each, in pixels.
        seed: with the index of an image it decides all of that image.
        category_names: what the split is asked; everything in it is one of them.
        load_cutouts: gives the cut-outs, once per process.
        photos: photographs that serve as backgrounds; without any, drawn ones do.
    """

    name: str
    num_images: int
    size: tuple[int, int]
    seed: int
    category_names: Sequence[str]
    load_cutouts: Callable[[], list[Cutout]]
    photos: tuple[str, ...] = ()


def write_split(split: SceneSplit, root: Path, *, workers: int = 1) -> Path:
    """Write a split below ``root``; what is complete with these settings is left as it is.

    The images come first and the annotations last, each renamed into place when whole, so that an
    annotation file says that its split is complete, and with which settings it was made. What
    follows from the annotations (:data:`DERIVED`) is written where it is not there yet.

    Returns:
        the annotation file.
    """
    annotation_file = root / f"{split.name}.json"
    if not _is_complete(annotation_file, split):
        annotation_file.unlink(missing_ok=True)
        _write_scenes(split, root, workers)
    for ending, (settings, derive) in DERIVED.items():
        _write_derived(annotation_file, ending, settings, derive)
    return annotation_file


def _is_complete(annotation_file: Path, split: SceneSplit) -> bool:
    if not annotation_file.is_file():
        return False
    return json.loads(annotation_file.read_text(encoding="utf8")).get("info") == _info(split)


def _write_scenes(split: SceneSplit, root: Path, workers: int) -> None:
    images = root / split.name
    partial = root / f"{split.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write = functools.partial(_write_scene, split, partial)
    with multiprocessing.Pool(workers) as pool:
        records = list(
            tqdm(
                pool.imap(write, range(split.num_images), chunksize=16),
                total=split.num_images,
                desc=split.name,
                unit="scene",
            )
        )
        # They end by themselves: leaving the block sends SIGTERM, and waits for ever where this
        # process has a handler of its own for it (torchrun's agent sets one), which they inherit.
        pool.close()
        pool.join()
    shutil.rmtree(images, ignore_errors=True)
    partial.rename(images)
    for kind, content in _collect(split, records).items():
        _write_json(root / f"{split.name}{kind}.json", content)


def _write_derived(
    annotation_file: Path, ending: str, settings: Mapping[str, Any], derive: Derive
) -> None:
    """Derive a file, unless it is there and follows from these annotations and settings."""
    path = annotation_file.with_name(f"{annotation_file.stem}{ending}.json")
    annotations = annotation_file.read_bytes()
    info = {"annotations_sha256": hashlib.sha256(annotations).hexdigest(), **settings}
    if path.is_file() and json.loads(path.read_text(encoding="utf8")).get("info") == info:
        return
    _write_json(path, {"info": info, **derive(json.loads(annotations))})


def _further_questions(scenes: Mapping[str, Any]) -> dict[str, Any]:
    return {"questions": _as_vqa(ask_further(scenes))[0]}


def _further_answers(scenes: Mapping[str, Any]) -> dict[str, Any]:
    return {"annotations": _as_vqa(ask_further(scenes))[1]}


_FURTHER = {"num_presence": NUM_PRESENCE, "num_places": NUM_PLACES, "num_things": NUM_THINGS}
# What follows from annotations: the ending of a file's name, what else it depends on, and how.
DERIVED: dict[str, tuple[dict[str, Any], Derive]] = {
    "_referring": (
        {"min_distance": MIN_DISTANCE, "min_area_ratio": MIN_AREA_RATIO},
        referring_file,
    ),
    "_retold": ({"num_retold": NUM_RETOLD}, retell),
    "_further_questions": (_FURTHER, _further_questions),
    "_further_answers": (_FURTHER, _further_answers),
}


def _info(split: SceneSplit) -> dict[str, Any]:
    """What the scenes of a split depend on, as COCO's ``info``."""
    names = "\n".join(split.category_names).encode("utf8")
    return {
        "num_images": split.num_images,
        "size": list(split.size),
        "seed": split.seed,
        "names_sha256": hashlib.sha256(names).hexdigest(),
    }


@functools.cache
def _material(
    load_cutouts: Callable[[], list[Cutout]], photos: tuple[str, ...]
) -> tuple[list[Cutout], list[Image.Image]]:
    return load_cutouts(), load_photos(photos)


def make_scene(split: SceneSplit, index: int) -> tuple[Scene, np.random.Generator]:
    """A scene of a split, and its random generator as it was left."""
    cutouts, photos = _material(split.load_cutouts, split.photos)
    rng = np.random.default_rng([split.seed, index])
    background = make_background(photos, split.size, rng)
    return compose_scene(cutouts, background, rng), rng


def _write_scene(split: SceneSplit, directory: Path, index: int) -> dict[str, Any]:
    scene, rng = make_scene(split, index)
    file_name = f"{index:06d}.jpg"
    scene.image.save(directory / file_name, quality=JPEG_QUALITY)
    names = [thing.name for thing in scene.objects]
    boxes = [thing.box for thing in scene.objects]
    caption, spans = describe(names)
    return {
        "file_name": file_name,
        "width": scene.image.width,
        "height": scene.image.height,
        "caption": caption,
        "questions": ask(
            names, [(x1 + x2) / 2 for x1, _, x2, _ in boxes], split.category_names, rng
        ),
        "objects": [
            {
                "name": thing.name,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(thing.mask.sum()),
                "segmentation": _encode(thing.mask),
                "tokens_positive": [list(span)],
            }
            for thing, (x1, y1, x2, y2), span in zip(scene.objects, boxes, spans, strict=True)
        ],
    }


def _encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _collect(split: SceneSplit, records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The contents of the split's files by the endings of their names, annotations last."""
    category_ids = {name: i for i, name in enumerate(split.category_names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        image_keys = ("file_name", "width", "height", "caption")
        images.append({"id": image_id, **{key: record[key] for key in image_keys}})
        for thing in record["objects"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[thing.pop("name")],
                    "iscrowd": 0,
                    **thing,
                }
            )
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    questions, answers = _as_vqa({i: r["questions"] for i, r in enumerate(records, start=1)})
    return {
        "_questions": {"questions": questions},
        "_answers": {"annotations": answers},
        "": {
            "info": _info(split),
            "images": images,
            "annotations": annotations,
            "categories": categories,
        },
    }


def _as_vqa(
    asked: Mapping[int, Sequence[tuple[str, str]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Per image id questions with answers -> the questions and the annotations of VQAv2's files."""
    questions: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image_id, pairs in asked.items():
        for question, answer in pairs:
            ids = {"question_id": len(questions) + 1, "image_id": image_id}
            questions.append({**ids, "question": question})
            answers.append({**ids, **_vqa_answer(answer)})
    return questions, answers


def _vqa_answer(answer: str) -> dict[str, Any]:
    kinds = {"yes": "yes/no", "no": "yes/no"}
    kind = kinds.get(answer, "number" if answer.isdigit() else "other")
    people = range(1, ANSWERS_PER_QUESTION + 1)
    return {
        "answer_type": kind,
        "multiple_choice_answer": answer,
        "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in people],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf8")
    os.replace(partial, path)
