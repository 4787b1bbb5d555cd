"""Captions with pseudo boxes, in JSON lines or WebDataset's tar shards.

A line is one image-caption pair (our own format)::

    {"image": "000/1.jpg", "caption": "a dog on a sofa",
     "boxes": [[10, 20, 200, 180], [0, 90, 300, 220]], "spans": [[[0, 5]], [[9, 15]]],
     "scores": [0.9, 0.6], "phrases": ["a dog", "a sofa"], "height": 240, "width": 320}

``boxes`` are XYXY in pixels; ``spans`` has the [begin, end) character spans of each box.
``scores`` (default 1), ``phrases`` (the text of the spans, to check them), ``height`` and
``width`` are optional. In a shard the line is ``<key>.json`` without ``image``, and the image is
``<key>.jpg`` (or png, jpeg, webp).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO, Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from glipv2_d2.data.coco_fields import parse_size
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import json_lines
from glipv2_d2.data.registration import Record, StreamedRecords, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

UNUSABLE_LINE = "lines were not an image-caption pair and were dropped"
UNUSABLE_SAMPLE = "samples of shards had no image or no caption and were dropped"
WITHOUT_BOXES = "captions had no box above the score threshold and were dropped"

# Pseudo boxes with lower scores are not used (GLIP paper, appendix C.1).
MIN_SCORE = 0.5
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def register_captions(name: str, json_file: str, image_root: str) -> None:
    """Register JSON lines. Training packs other captions of the dataset around each caption."""
    register(
        name,
        StreamedRecords(functools.partial(iterate_captions, json_file, image_root, name)),
        source_files=(json_file, image_root),
        pack_captions=True,
    )


def register_shards(name: str, shards: str) -> None:
    """Register tar shards. Training packs other captions of the dataset around each caption.

    Args:
        shards: path with a brace range, such as ``data/cc3m-{00000..00331}.tar``.
    """
    register(
        name,
        StreamedRecords(functools.partial(iterate_shards, shards, name)),
        source_files=(),
        find_files=functools.partial(shard_paths, shards, name),
        pack_captions=True,
    )


def read_captions(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """Grounding records of JSON lines, without boxes below the score threshold."""
    return list(iterate_captions(json_file, image_root, dataset_name))


def iterate_captions(json_file: str, image_root: str, dataset_name: str) -> Iterator[Record]:
    """The records of :func:`read_captions`, one by one."""
    faults = Faults()
    yield from with_boxes(_parse_lines(json_file, image_root, faults), faults)
    faults.warn(logger, dataset_name)


def _parse_lines(json_file: str, image_root: str, faults: Faults) -> Iterator[Record]:
    for number, line in json_lines(json_file):
        try:
            pair = json.loads(line)
            yield caption_record(pair, os.path.join(image_root, pair["image"]))
        # The line is truncated, or has other fields.
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            faults.add(UNUSABLE_LINE, f"{json_file}:{number} ({_short(error)})")


def with_boxes(records: Iterable[Record], faults: Faults) -> Iterator[Record]:
    """The records that have boxes, numbered; GLIP also samples others for captions without boxes.

    Args:
        faults: counts the captions without boxes.
    """
    number = 0
    for record in records:
        if record["annotations"]:
            yield {"image_id": number, **record}
            number += 1
        else:
            faults.add(WITHOUT_BOXES, record["file_name"])


def caption_record(pair: dict[str, Any], path: str) -> Record:
    """The record of one image-caption pair.

    Raises:
        ValueError, KeyError, TypeError: a field is missing or has the wrong type.
    """
    try:
        return _caption_record(pair, path)
    # A number beyond those of floats, or infinity in place of an integer.
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _caption_record(pair: dict[str, Any], path: str) -> Record:
    boxes, spans = pair["boxes"], pair["spans"]
    scores = pair.get("scores", [1.0] * len(boxes))
    texts = pair.get("phrases", [None] * len(boxes))
    annotations = []
    for box, tokens_positive, score, text in zip(boxes, spans, scores, texts, strict=True):
        if score <= MIN_SCORE:
            continue
        x1, y1, x2, y2 = map(float, box)
        annotation = {
            "bbox": [x1, y1, x2, y2],
            "bbox_mode": BoxMode.XYXY_ABS,
            "tokens_positive": [[int(begin), int(end)] for begin, end in tokens_positive],
        }
        if text is not None:
            annotation["phrase"] = text
        annotations.append(annotation)
    record = {"file_name": path, fields.CAPTION: str(pair["caption"]), "annotations": annotations}
    if fields.HEIGHT not in pair and fields.WIDTH not in pair:
        return record
    size = parse_size(pair)
    if size is None:
        given = {key: pair.get(key) for key in (fields.HEIGHT, fields.WIDTH)}
        raise ValueError(f"no usable size: {given!r:.80}")
    return record | {fields.HEIGHT: size[0], fields.WIDTH: size[1]}


def read_shards(shards: str, dataset_name: str) -> list[Record]:
    """Grounding records of tar shards; images are not extracted but read from their shard.

    Shard names and samples follow webdataset. Training samples the records in any order, as it
    does for image files.

    Raises:
        ValueError: the package webdataset is not installed.
        FileNotFoundError: a shard does not exist.
    """
    return list(iterate_shards(shards, dataset_name))


def iterate_shards(shards: str, dataset_name: str) -> Iterator[Record]:
    """The records of :func:`read_shards`, one by one."""
    paths = shard_paths(shards, dataset_name)
    faults = Faults()
    yield from with_boxes(_parse_shards(paths, faults), faults)
    faults.warn(logger, dataset_name)


def shard_paths(shards: str, dataset_name: str) -> list[str]:
    """The paths of a brace range; errors as in :func:`read_shards`."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError(
            f"dataset {dataset_name!r} is in tar shards, which need the package webdataset: "
            "pip install webdataset"
        ) from error
    paths: list[str] = expand_urls(shards)
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"dataset {dataset_name!r}: shard {path!r} does not exist")
    return paths


def _parse_shards(paths: Iterable[str], faults: Faults) -> Iterator[Record]:
    from webdataset.tariterators import group_by_keys

    for shard in paths:
        for sample in group_by_keys(shard_members(shard, faults, (".json",))):
            image = next((sample[s] for s in IMAGE_SUFFIXES if s in sample), None)
            try:
                record = caption_record(json.loads(sample["json"]), image or "")
            except (ValueError, KeyError, TypeError) as error:
                faults.add(UNUSABLE_SAMPLE, f"{shard}/{sample['__key__']} ({_short(error)})")
                continue
            if image is None:
                faults.add(UNUSABLE_SAMPLE, f"{shard}/{sample['__key__']} (no image)")
            else:
                yield record


def shard_members(
    shard: str, faults: Faults, text_suffixes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The members of a tar shard in webdataset's format, with a ``tar://`` path for each image.

    Args:
        faults: counts a truncated shard.
        text_suffixes: lower-case suffixes of the members whose content is read.
    """
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                name = member.name.lower()
                data: str | bytes
                if member.isfile() and name.endswith(IMAGE_SUFFIXES):
                    data = f"{TarMembers.PREFIX}{shard}/{member.name}"
                    data += f"@{member.offset_data}+{member.size}"
                elif member.isfile() and name.endswith(text_suffixes):
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                else:
                    continue
                yield {"fname": member.name, "data": data, "__url__": shard}
    except tarfile.ReadError as error:
        # The shard is truncated; members read so far are complete.
        faults.add(UNUSABLE_SAMPLE, f"{shard} ({error})")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class TarMembers(PathHandler):
    """Path handler that opens ``tar://SHARD.tar/MEMBER@OFFSET+SIZE`` as a file."""

    PREFIX = "tar://"
    _PATH = re.compile(r"tar://(?P<shard>.+?\.tar)/.+@(?P<offset>\d+)\+(?P<size>\d+)")

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[bytes]:  # noqa: ARG002
        match = self._PATH.fullmatch(path)
        if match is None or mode != "rb":
            raise ValueError(
                f"{path!r} (mode {mode!r}) is not a member of a tar file: use "
                "tar://SHARD.tar/MEMBER@OFFSET+SIZE with mode 'rb'"
            )
        with open(match["shard"], "rb") as file:
            file.seek(int(match["offset"]))
            return BytesIO(file.read(int(match["size"])))


PathManager.register_handler(TarMembers(), allow_override=True)
