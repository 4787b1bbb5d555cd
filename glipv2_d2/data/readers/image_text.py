"""Images with captions and nothing else, to be labelled by a teacher.

| file | what it has |
|---|---|
| ``.json`` | COCO captions: ``images`` with ``file_name``, ``annotations`` with ``caption`` |
| ``.jsonl`` | a line per pair, ``{"image": "000/1.jpg", "caption": "a dog on a sofa"}`` |
| ``.tar`` | WebDataset shards: ``<key>.jpg`` with ``<key>.txt``, or ``caption`` in ``<key>.json`` |
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.captions import (
    IMAGE_SUFFIXES,
    UNUSABLE_LINE,
    UNUSABLE_SAMPLE,
    shard_members,
)

logger = logging.getLogger(__name__)

UNUSABLE_ANNOTATION = "annotations had no caption, or no image in the file, and were left out"


class Pair(NamedTuple):
    """An image and one caption of it; an image with several captions is in several pairs.

    ``image`` is a path relative to the folder of the images. In a shard it is the place of the
    image, which Detectron2 opens as a file (:class:`~glipv2_d2.data.readers.captions.TarMembers`).
    """

    image: str
    caption: str


def read_pairs(source: str) -> list[Pair]:
    """All pairs of a source, in its order; what is no pair is counted and named in a warning.

    Args:
        source: a file of one of the kinds above, told by its suffix. Shards are a path with
            braces, ``data/cc3m-{00000..00331}.tar``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is another, the file is not of this kind, or it has no pair.
    """
    suffix = os.path.splitext(source)[1].lower()
    if suffix not in _READERS:
        raise ValueError(
            f"captions {source!r}: the suffix {suffix!r} is not known; give COCO captions (.json), "
            "lines of image and caption (.jsonl), or WebDataset shards (.tar)"
        )
    faults = Faults()
    pairs = list(_READERS[suffix](source, faults))
    faults.warn(logger, source)
    if not pairs:
        raise ValueError(f"captions {source!r}: there is no pair of image and caption in it")
    return pairs


def holds_images(source: str) -> bool:
    """Whether the images lie in the source itself, as in shards."""
    return source.lower().endswith(".tar")


def _read_coco(source: str, faults: Faults) -> Iterator[Pair]:
    with open(source, encoding="utf-8") as file:
        try:
            content = json.load(file)
            images = {image["id"]: image["file_name"] for image in content["images"]}
            annotations = list(content["annotations"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"captions {source!r}: not COCO's form, which has a list of images and one of "
                f"annotations ({type(error).__name__}: {error})"
            ) from error
    for number, annotation in enumerate(annotations):
        try:
            yield _pair(images[annotation["image_id"]], annotation["caption"])
        except (ValueError, KeyError, TypeError) as error:
            faults.add(UNUSABLE_ANNOTATION, f"number {number} ({type(error).__name__}: {error})")


def _read_lines(source: str, faults: Faults) -> Iterator[Pair]:
    with open(source, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
                yield _pair(content["image"], content["caption"])
            # A line cut short by a killed writer, or another tool's fields.
            except (ValueError, KeyError, TypeError) as error:
                faults.add(UNUSABLE_LINE, f"{source}:{number} ({type(error).__name__}: {error})")


def _read_shards(source: str, faults: Faults) -> Iterator[Pair]:
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise ValueError(
            f"captions {source!r} are in tar shards, which need the package webdataset: "
            "pip install webdataset"
        ) from error
    for shard in expand_urls(source):
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"captions {source!r}: shard {shard!r} does not exist")
        for sample in group_by_keys(shard_members(shard, faults, (".json", ".txt"))):
            image = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)
            try:
                yield _pair(image, _caption_of(sample))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{shard}/{sample['__key__']}"
                faults.add(UNUSABLE_SAMPLE, f"{where} ({type(error).__name__}: {error})")


def _caption_of(sample: dict[str, Any]) -> Any:
    if "txt" in sample:
        return sample["txt"].decode("utf-8").strip()
    return json.loads(sample["json"])["caption"]


def _pair(image: Any, caption: Any) -> Pair:
    if not isinstance(image, str) or not isinstance(caption, str):
        raise TypeError(f"image {image!r} and caption {caption!r} should be texts")
    return Pair(image, caption)


_READERS: dict[str, Callable[[str, Faults], Iterator[Pair]]] = {
    ".json": _read_coco,
    ".jsonl": _read_lines,
    ".tar": _read_shards,
}
