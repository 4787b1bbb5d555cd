"""Write composed scenes to disk as a dataset: COCO annotations, captions with spans, questions.

``<split>.json`` has COCO's fields (images, annotations with RLE masks, categories), plus MDETR's
``caption`` of an image and ``tokens_positive`` of an annotation, and the ``color`` of an annotation
whose object was tinted. The annotations of an image, and the nouns of its caption, are ordered by
visible area, the largest first. ``<split>_questions.json`` and
``<split>_answers.json``, for splits with questions, have VQAv2's fields. Field names are from
memory of the published files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from tqdm import tqdm

from glipv2_d2.data.composition import (
    DRAWN_STYLE,
    Cutout,
    Scene,
    SceneStyle,
    compose_scene,
    drawn_background,
)
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.structures.text import Span

JPEG_QUALITY = 90
ANSWERS_PER_QUESTION = 10  # as VQAv2 has; here all ten are equal
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

NounPhrase = Callable[[str, int], str]
"""Class name and count -> noun phrase, as :func:`simple_noun_phrase`."""
Question = tuple[str, str]
"""A question and its answer."""


def simple_noun_phrase(name: str, count: int) -> str:
    """The noun phrase for ``count`` objects of a class with a regular name.

    >>> simple_noun_phrase("red circle", 1), simple_noun_phrase("blue cross", 2)
    ('a red circle', 'two blue crosses')
    """
    if count == 1:
        return f"a {name}"
    return f"{NUMBERS[count]} {name}{'es' if name.endswith('s') else 's'}"


def scene_caption(
    names: Sequence[str], noun_phrase: NounPhrase = simple_noun_phrase
) -> tuple[str, list[Span]]:
    """A caption that mentions every object, and for each object the span of its noun phrase.

    >>> scene_caption(["red star", "blue ring", "red star"])
    ('a picture of two red stars and a blue ring', [(13, 26), (31, 42), (13, 26)])
    >>> scene_caption([])
    ('an empty picture', [])
    """
    if not names:
        return "an empty picture", []
    caption = "a picture of "
    spans: dict[str, Span] = {}
    counts = Counter(names)
    for i, (name, count) in enumerate(counts.items()):
        if i > 0:
            caption += " and " if i == len(counts) - 1 else ", "
        phrase = noun_phrase(name, count)
        spans[name] = (len(caption), len(caption) + len(phrase))
        caption += phrase
    return caption, [spans[name] for name in names]


@dataclass(frozen=True)
class SceneSplit:
    """A split of a dataset of composed scenes.

    Attributes:
        name: stem of its files.
        num_images: number of scenes.
        sizes: (w, h) of the images, in pixels; each image has one of them.
        seed: together with the index of an image it determines the whole image.
        category_names: the categories of the split; every object belongs to one of them.
        load_cutouts: loads the cutouts. It is pickled, and should compare equal to its copies, so
            that each process loads them once.
        style: what varies between the scenes.
        make_background: (size, random generator) -> background.
        noun_phrase: (class name, count) -> noun phrase of the captions.
        make_questions: (scene, category names, random generator) -> questions; None: the split has
            no questions.
    """

    name: str
    num_images: int
    sizes: Sequence[tuple[int, int]]
    seed: int
    category_names: Sequence[str]
    load_cutouts: Callable[[], list[Cutout]]
    style: SceneStyle = DRAWN_STYLE
    make_background: Callable[[tuple[int, int], np.random.Generator], Image.Image] = (
        drawn_background
    )
    noun_phrase: NounPhrase = simple_noun_phrase
    make_questions: Callable[[Scene, Sequence[str], np.random.Generator], list[Question]] | None = (
        None
    )


def write_split(split: SceneSplit, root: Path, *, workers: int = 1) -> Path:
    """Write a split below ``root``, unless it is complete already with the same settings.

    Images are written first and annotations last, each renamed into place when complete: an
    annotation file marks its split as complete and records its settings.

    Returns:
        the annotation file.
    """
    annotation_file = root / f"{split.name}.json"
    if not _is_complete(annotation_file, split):
        annotation_file.unlink(missing_ok=True)
        _write_scenes(split, root, workers)
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
        # Wait for the workers here: leaving the block sends SIGTERM, and hangs where this process
        # handles that signal itself (as torchrun's agent does), because workers inherit handlers.
        pool.close()
        pool.join()
    shutil.rmtree(images, ignore_errors=True)
    partial.rename(images)
    for kind, content in _collect(split, records).items():
        write_json(root / f"{split.name}{kind}.json", content)


def _info(split: SceneSplit) -> dict[str, Any]:
    """The settings that determine the scenes of a split, as COCO's ``info``."""
    names = "\n".join(split.category_names).encode("utf8")
    return {
        "num_images": split.num_images,
        "sizes": [list(size) for size in split.sizes],
        "seed": split.seed,
        "style": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(split.style).items()
        },
        "names_sha256": hashlib.sha256(names).hexdigest(),
    }


@functools.cache
def _cutouts(load_cutouts: Callable[[], list[Cutout]]) -> list[Cutout]:
    return load_cutouts()


def make_scene(split: SceneSplit, index: int) -> tuple[Scene, np.random.Generator]:
    """A scene of a split, and its random generator in the state after composition."""
    rng = np.random.default_rng([split.seed, index])
    # One size takes no random number.
    size = split.sizes[int(rng.integers(len(split.sizes))) if len(split.sizes) > 1 else 0]
    background = split.make_background(size, rng)
    return compose_scene(_cutouts(split.load_cutouts), background, rng, split.style), rng


def _write_scene(split: SceneSplit, directory: Path, index: int) -> dict[str, Any]:
    scene, rng = make_scene(split, index)
    file_name = f"{index:06d}.jpg"
    scene.image.save(directory / file_name, quality=JPEG_QUALITY)
    objects = sorted(scene.objects, key=lambda item: int(item.mask.sum()), reverse=True)
    names = [item.name for item in objects]
    boxes = [item.box for item in objects]
    caption, spans = scene_caption(names, split.noun_phrase)
    questions: list[Question] = []
    if split.make_questions is not None:
        questions = split.make_questions(scene, split.category_names, rng)
    return {
        "file_name": file_name,
        "width": scene.image.width,
        "height": scene.image.height,
        "caption": caption,
        "questions": questions,
        "objects": [
            {
                "name": item.name,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(item.mask.sum()),
                "segmentation": _encode(item.mask),
                "tokens_positive": [list(span)],
                **({} if item.color is None else {"color": item.color}),
            }
            for item, (x1, y1, x2, y2), span in zip(objects, boxes, spans, strict=True)
        ],
    }


def _encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _collect(split: SceneSplit, records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Endings of the split's file names -> contents, annotations last."""
    category_ids = {name: i for i, name in enumerate(split.category_names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        image_keys = ("file_name", "width", "height", "caption")
        images.append({"id": image_id, **{key: record[key] for key in image_keys}})
        for item in record["objects"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[item.pop("name")],
                    "iscrowd": 0,
                    **item,
                }
            )
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    contents: dict[str, dict[str, Any]] = {}
    if split.make_questions is not None:
        pairs = {i: record["questions"] for i, record in enumerate(records, start=1)}
        contents = vqa_files(pairs)
    return {
        **contents,
        "": {
            "info": _info(split),
            "images": images,
            "annotations": annotations,
            "categories": categories,
        },
    }


def vqa_files(questions_of: Mapping[int, Sequence[Question]]) -> dict[str, dict[str, Any]]:
    """VQAv2's files of the questions per image id: ``{"_questions": ..., "_answers": ...}``."""
    return vqa_files_of_answers(
        {
            image_id: [(question, [answer] * ANSWERS_PER_QUESTION) for question, answer in pairs]
            for image_id, pairs in questions_of.items()
        }
    )


def vqa_files_of_answers(
    questions_of: Mapping[int, Sequence[tuple[str, Sequence[str]]]],
) -> dict[str, dict[str, Any]]:
    """:func:`vqa_files` of questions with all their answers, the most common one first."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, pairs in questions_of.items():
        for question, answers in pairs:
            ids = {"question_id": len(questions) + 1, "image_id": image_id}
            questions.append({**ids, "question": question})
            annotations.append({**ids, **_vqa_answers(answers)})
    return {"_questions": {"questions": questions}, "_answers": {"annotations": annotations}}


def _vqa_answers(answers: Sequence[str]) -> dict[str, Any]:
    kinds = {"yes": "yes/no", "no": "yes/no"}
    first = answers[0]
    return {
        "answer_type": kinds.get(first, "number" if first.isdigit() else "other"),
        "multiple_choice_answer": first,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, start=1)
        ],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, renamed into place when complete."""
    atomic_write(path, dump_json(content))
