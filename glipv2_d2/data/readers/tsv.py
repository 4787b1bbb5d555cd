"""Captions with pseudo boxes in the TSV files of GLIP (Cap4M, Conceptual Captions, SBU).

A YAML file names the others, relative to its folder:

| key | file |
|---|---|
| ``img`` | TSV: a key in the first column, the image in base64 in the last |
| ``label`` | TSV: a key, then the annotations as JSON |
| ``linelist`` | optional: the numbers, from 0, of the lines to use, one per line |
| ``imageid2idx`` | optional JSON: ``img_id`` of the annotations -> line number in ``img`` |

Without ``imageid2idx``, the lines of ``img`` and ``label`` correspond. ``<name>.lineidx`` beside
``<name>.tsv`` has the byte offset of each of its lines. The annotations of an image are::

    {"img_h": 240, "img_w": 320, "caption": "a dog on a sofa", "bboxes": [[10, 20, 200, 180]],
     "tokens_positive": [[[0, 5]]], "scores": [0.9]}

``bboxes`` are XYXY in pixels. In the second version of the format (``CAPTION_FORMAT_VERSION`` v2)
``bboxes`` and ``scores`` have a list per phrase. Source: microsoft/GLIP, data/datasets/tsv.py and
caption.py. ``hw`` is not needed, because annotations have the size.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import IO, Any

import numpy as np
import yaml
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.readers.captions import UNUSABLE_LINE, caption_record, with_boxes
from glipv2_d2.data.registration import Record, StreamedRecords, register

logger = logging.getLogger(__name__)

KEYS = ("img", "label", "linelist", "imageid2idx")
REQUIRED_KEYS = ("img", "label")
# Bytes of a file of numbers that are parsed at once.
CHUNK_BYTES = 2**22


def register_tsv(name: str, yaml_file: str) -> None:
    """Register TSV files. Training packs other captions of the dataset around each caption."""
    register(
        name,
        StreamedRecords(functools.partial(iterate_tsv, yaml_file, name)),
        source_files=(yaml_file,),
        find_files=functools.partial(_find_files, yaml_file),
        pack_captions=True,
    )


def iterate_tsv(yaml_file: str, dataset_name: str) -> Iterator[Record]:
    """Grounding records, one by one; images are not extracted but read from the TSV file.

    Args:
        dataset_name: for the report of dropped lines.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the YAML file or a file of line numbers has another format.
    """
    paths = tsv_paths(yaml_file)
    faults = Faults()
    yield from with_boxes(_parse_lines(paths, faults), faults)
    faults.warn(logger, dataset_name)


def tsv_paths(yaml_file: str) -> dict[str, str]:
    """The paths of the files that a YAML file names; errors as in :func:`iterate_tsv`."""
    try:
        with open(yaml_file, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{yaml_file!r} is not a YAML file: {error}") from error
    names = {key: content[key] for key in KEYS if key in content} if type(content) is dict else {}
    if not names.keys() >= set(REQUIRED_KEYS) or not all(type(n) is str for n in names.values()):
        raise ValueError(
            f"{yaml_file!r} should name the TSV files of images and annotations: "
            "{img: train.tsv, label: train.label.tsv}"
        )
    folder = os.path.dirname(yaml_file)
    paths = {}
    for key, name in names.items():
        in_folder = os.path.join(folder, name)
        # As in GLIP, the paths may also be relative to the working directory.
        paths[key] = in_folder if os.path.isfile(in_folder) else name
        if not os.path.isfile(paths[key]):
            raise FileNotFoundError(f"{yaml_file!r}: the file {in_folder!r} ({key}) does not exist")
    return paths


def _find_files(yaml_file: str) -> list[str]:
    """The files that the records are made of, besides the YAML file."""
    paths = list(tsv_paths(yaml_file).values())
    return [*paths, *filter(os.path.isfile, map(_lineidx_path, paths))]


def _lineidx_path(tsv_file: str) -> str:
    return f"{os.path.splitext(tsv_file)[0]}.lineidx"


def _parse_lines(paths: Mapping[str, str], faults: Faults) -> Iterator[Record]:
    ends = line_ends(paths["img"])
    line_of = load_json(paths["imageid2idx"]) if "imageid2idx" in paths else None
    for number, line in _label_lines(paths, faults):
        try:
            annotations = json.loads(line.split(b"\t")[1])
            image = number if line_of is None else line_of[str(annotations["img_id"])]
            if type(image) is not int or not 0 <= image < len(ends):
                raise ValueError(f"{paths['img']!r} has no line {image!r}")
            begin = int(ends[image - 1]) if image else 0
            path = f"{TsvImages.PREFIX}{paths['img']}@{begin}+{int(ends[image]) - begin}"
            yield caption_record(_pair(annotations), path)
        # The line is truncated, or has other fields.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            where = f"{paths['label']}:{number + 1} ({type(error).__name__}: {error})"
            faults.add(UNUSABLE_LINE, where)


def _label_lines(paths: Mapping[str, str], faults: Faults) -> Iterator[tuple[int, bytes]]:
    """The lines with annotations, numbered from 0."""
    with open(paths["label"], "rb") as file:
        if "linelist" not in paths:
            yield from ((number, line) for number, line in enumerate(file) if line.strip())
            return
        ends = line_ends(paths["label"])
        for number in _read_integers(paths["linelist"]):
            if not 0 <= number < len(ends):
                faults.add(UNUSABLE_LINE, f"{paths['linelist']} (no line {number})")
                continue
            begin = int(ends[number - 1]) if number else 0
            file.seek(begin)
            yield int(number), file.read(int(ends[number]) - begin)


def _pair(annotations: dict[str, Any]) -> dict[str, Any]:
    """Annotations as a line of :mod:`glipv2_d2.data.readers.captions`, without its image."""
    boxes, spans = annotations["bboxes"], annotations["tokens_positive"]
    scores = annotations.get("scores", [1.0] * len(boxes))
    if all(isinstance(value, list) for box in boxes for value in box):
        # A list per phrase.
        spans = [s for s, of_phrase in zip(spans, boxes, strict=True) for _ in of_phrase]
        scores = [score for of_phrase in scores for score in of_phrase]
        boxes = [box for of_phrase in boxes for box in of_phrase]
    pair = {"caption": annotations["caption"], "boxes": boxes, "spans": spans, "scores": scores}
    size = {"height": annotations.get("img_h"), "width": annotations.get("img_w")}
    return pair if None in size.values() else pair | size


def line_ends(tsv_file: str) -> np.ndarray:
    """(num_lines,) int64: where each line of a TSV file ends, in bytes.

    Without a ``.lineidx`` the whole file is read.

    Raises:
        ValueError: the ``.lineidx`` belongs to another file.
    """
    index = _lineidx_path(tsv_file)
    if not os.path.isfile(index):
        logger.warning("'%s' does not exist: '%s' is read to find its lines", index, tsv_file)
        with open(tsv_file, "rb") as file:
            return np.cumsum(np.fromiter(map(len, file), np.int64))
    begins = _read_integers(index)
    ends = np.append(begins[1:], os.path.getsize(tsv_file)) if len(begins) else begins
    if (begins[:1] != 0).any() or (ends <= begins).any():
        raise ValueError(
            f"{index!r} does not belong to {tsv_file!r}: it should have the byte offset of each "
            "line, in ascending order from 0. Delete it, and the lines are found without it"
        )
    return ends


def _read_integers(path: str) -> np.ndarray:
    """A file with a whole number per line, as int64."""
    parts = [np.zeros(0, np.int64)]
    with open(path, "rb") as file:
        while lines := file.readlines(CHUNK_BYTES):
            try:
                parts.append(np.array([int(x) for x in lines if x.strip()], np.int64))
            except (ValueError, OverflowError) as error:
                raise ValueError(
                    f"{path!r} should have one whole number per line: {error}"
                ) from error
    return np.concatenate(parts)


class TsvImages(PathHandler):
    """Path handler that opens ``tsv://FILE@OFFSET+SIZE``, a line of a TSV file, as its image."""

    PREFIX = "tsv://"
    _PATH = re.compile(r"tsv://(?P<file>.+)@(?P<offset>\d+)\+(?P<size>\d+)")

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[bytes]:  # noqa: ARG002
        match = self._PATH.fullmatch(path)
        if match is None or mode != "rb":
            raise ValueError(
                f"{path!r} (mode {mode!r}) is not a line of a TSV file: use "
                "tsv://FILE@OFFSET+SIZE with mode 'rb'"
            )
        offset, size = int(match["offset"]), int(match["size"])
        with open(match["file"], "rb") as file:
            before = os.pread(file.fileno(), 1, offset - 1) if offset else b"\n"
            line = os.pread(file.fileno(), size, offset)
        if before != b"\n" or b"\n" in line[:-1] or b"\t" not in line:
            raise ValueError(
                f"there is no line of a TSV file at this place of {match['file']!r}: delete "
                f"{_lineidx_path(match['file'])!r}, if it belongs to another version of the file"
            )
        return BytesIO(base64.b64decode(line.rsplit(b"\t", 1)[1].strip(), validate=True))


PathManager.register_handler(TsvImages(), allow_override=True)
