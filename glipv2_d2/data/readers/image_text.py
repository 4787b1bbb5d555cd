"""Image-caption pairs without boxes, which a teacher model labels.

| file | content |
|---|---|
| ``.json`` | COCO captions: ``images`` with ``file_name``, ``annotations`` with ``caption`` |
| ``.jsonl`` | one pair per line, ``{"image": "000/1.jpg", "caption": "a dog on a sofa"}`` |
| ``.tar`` | WebDataset shards: ``<key>.jpg`` with ``<key>.txt``, or ``caption`` in ``<key>.json`` |
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import json_lines
from glipv2_d2.data.readers.captions import (
    IMAGE_SUFFIXES,
    UNUSABLE_LINE,
    UNUSABLE_SAMPLE,
    shard_members,
)
from glipv2_d2.messages import quote

logger = logging.getLogger(__name__)

UNUSABLE_ANNOTATION = "annotations had no caption, or no image in the file, and were dropped"


class Pair(NamedTuple):
    """An image and one of its captions.

    ``image`` is a path relative to the image folder, or for shards a ``tar://`` path, which
    Detectron2 opens as a file (:class:`~glipv2_d2.data.readers.captions.TarMembers`).
    """

    image: str
    caption: str


def read_pairs(source: str) -> list[Pair]:
    """All pairs of a source, in its order. A warning counts and locates invalid entries.

    Args:
        source: a file in one of the formats above, determined by its suffix. Shards are a path
            with a brace range, such as ``data/cc3m-{00000..00331}.tar``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the suffix is unknown, the format is wrong, or the file has no pair.
    """
    suffix = os.path.splitext(source)[1].lower()
    if suffix not in _READERS:
        raise ValueError(
            f"captions {source!r}: unknown suffix {suffix!r}; use COCO captions (.json), lines of "
            "image and caption (.jsonl), or WebDataset shards (.tar)"
        )
    faults = Faults()
    pairs = list(_READERS[suffix](source, faults))
    faults.warn(logger, source)
    if not pairs:
        raise ValueError(f"captions {source!r}: the file has no image-caption pair")
    return pairs


def contains_images(source: str) -> bool:
    """Whether the source contains the images, as shards do."""
    return source.lower().endswith(".tar")


def _read_coco(source: str, faults: Faults) -> Iterator[Pair]:
    file = read_annotation_file(source)
    for kind, count in file.faults.counts.items():
        faults.add(kind, "; ".join(file.faults.examples[kind]), count)
    for annotation in file.annotations:
        try:
            image = file.images[annotation["image_id"]].get("file_name")
            yield _pair(image, annotation.get("caption"))
        except TypeError as error:
            faults.add(UNUSABLE_ANNOTATION, f"{file.place(annotation)} ({error})")


def _read_lines(source: str, faults: Faults) -> Iterator[Pair]:
    for number, line in json_lines(source):
        try:
            content = json.loads(line)
            yield _pair(content["image"], content["caption"])
        # The line is truncated, or has other fields.
        except (ValueError, KeyError, TypeError, RecursionError) as error:
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
        raise TypeError(f"image {quote(image)} and caption {quote(caption)} should be strings")
    return Pair(image, caption)


_READERS: dict[str, Callable[[str, Faults], Iterator[Pair]]] = {
    ".json": _read_coco,
    ".jsonl": _read_lines,
    ".tar": _read_shards,
}
