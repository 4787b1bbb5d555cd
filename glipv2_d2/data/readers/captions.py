"""Captions with pseudo boxes, as JSON lines or in WebDataset's tar shards.

A line is one pair of image and caption (our own format)::

    {"image": "000/1.jpg", "caption": "a dog on a sofa",
     "boxes": [[10, 20, 200, 180], [0, 90, 300, 220]], "spans": [[[0, 5]], [[9, 15]]],
     "scores": [0.9, 0.6], "phrases": ["a dog", "a sofa"], "height": 240, "width": 320}

``boxes`` are XYXY in pixels, ``spans`` per box the [begin, end) characters that it shows.
``scores`` (default 1), ``phrases`` (the text of the spans, to check them) and ``height`` and
``width`` may be missing. In a shard the line is ``<key>.json`` without ``image``, and the image is
``<key>.jpg`` (or png, jpeg, webp).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

UNUSABLE_LINE = "lines were no pair of image and caption and were left out"
UNUSABLE_SAMPLE = "samples of shards had no image or no caption and were left out"
WITHOUT_BOXES = "captions had no box over the score threshold and were left out"

# Boxes of lower score are not trained on (GLIP paper, appendix C.1).
MIN_SCORE = 0.5
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def register_captions(name: str, json_file: str, image_root: str) -> None:
    """Register JSON lines; training packs other captions of the set beside each caption."""
    register(
        name,
        functools.partial(read_captions, json_file, image_root, name),
        source_files=(json_file, image_root),
        pack_captions=True,
    )


def register_shards(name: str, shards: str) -> None:
    """Register tar shards; training packs other captions of the set beside each caption.

    Args:
        shards: path with braces, ``data/cc3m-{00000..00331}.tar``.
    """
    register(
        name, functools.partial(read_shards, shards, name), source_files=(), pack_captions=True
    )


def read_captions(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """Grounding records of JSON lines; boxes under the score threshold are left out."""
    faults = Faults()
    records: list[Record] = []
    with open(json_file, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                pair = json.loads(line)
                record = caption_record(pair, os.path.join(image_root, pair["image"]))
            # A line cut short by a killed writer, or another tool's fields.
            except (ValueError, KeyError, TypeError) as error:
                faults.add(UNUSABLE_LINE, f"{json_file}:{number} ({_short(error)})")
                continue
            _append(records, record, faults)
    faults.warn(logger, dataset_name)
    return records


def _append(records: list[Record], record: Record, faults: Faults) -> None:
    """A caption without boxes teaches nothing to find; GLIP draws another one in its place."""
    if record["annotations"]:
        records.append({"image_id": len(records), **record})
    else:
        faults.add(WITHOUT_BOXES, record["file_name"])


def caption_record(pair: dict[str, Any], path: str) -> Record:
    """The record of one pair.

    Raises:
        ValueError, KeyError, TypeError: a field is missing or of another form.
    """
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
    return record | {key: int(pair[key]) for key in ("height", "width") if key in pair}


def read_shards(shards: str, dataset_name: str) -> list[Record]:
    """Grounding records of tar shards; images stay where they are and are read by their place.

    What a shard is and which files are one sample, webdataset says; training draws the samples in
    any order, as it does with files.

    Raises:
        ValueError: the package webdataset is not installed.
        FileNotFoundError: a shard does not exist.
    """
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise ValueError(
            f"data set {dataset_name!r} is in tar shards, which need the package webdataset: "
            "pip install webdataset"
        ) from error
    faults = Faults()
    records: list[Record] = []
    for shard in expand_urls(shards):
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"data set {dataset_name!r}: shard {shard!r} does not exist")
        for sample in group_by_keys(shard_members(shard, faults, (".json",))):
            place = next((sample[s] for s in IMAGE_SUFFIXES if s in sample), None)
            try:
                record = caption_record(json.loads(sample["json"]), place or "")
            except (ValueError, KeyError, TypeError) as error:
                faults.add(UNUSABLE_SAMPLE, f"{shard}/{sample['__key__']} ({_short(error)})")
                continue
            if place is None:
                faults.add(UNUSABLE_SAMPLE, f"{shard}/{sample['__key__']} (no image)")
            else:
                _append(records, record, faults)
    faults.warn(logger, dataset_name)
    return records


def shard_members(
    shard: str, faults: Faults, text_suffixes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The members of a tar shard in the form of webdataset; of an image only where it lies.

    Args:
        faults: where a shard that is cut short is counted.
        text_suffixes: endings, in small letters, of the members to read beside the images.
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
        # Cut short: what was read so far is whole.
        faults.add(UNUSABLE_SAMPLE, f"{shard} ({error})")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class TarMembers(PathHandler):
    """Lets Detectron2 open ``tar://SHARD.tar/MEMBER@OFFSET+SIZE`` as a file."""

    PREFIX = "tar://"
    _PLACE = re.compile(r"tar://(?P<shard>.+?\.tar)/.+@(?P<offset>\d+)\+(?P<size>\d+)")

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[bytes]:  # noqa: ARG002
        place = self._PLACE.fullmatch(path)
        if place is None or mode != "rb":
            raise ValueError(
                f"{path!r} (mode {mode!r}) is no place in a tar file: "
                "tar://SHARD.tar/MEMBER@OFFSET+SIZE, to be read in mode 'rb'"
            )
        with open(place["shard"], "rb") as file:
            file.seek(int(place["offset"]))
            return BytesIO(file.read(int(place["size"])))


PathManager.register_handler(TarMembers(), allow_override=True)
