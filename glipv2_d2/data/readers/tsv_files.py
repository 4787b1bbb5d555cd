"""TSV files of GLIP and VinVL: images in base64, annotations as JSON, a YAML file that names them.

Paths are relative to the folder of the YAML file:

| key | file |
|---|---|
| ``img`` | TSV: a key in the first column, the image in base64 in the last |
| ``label`` | TSV: a key, then the annotations as JSON |
| ``linelist`` | optional: the numbers, from 0, of the lines to use, one per line |

The lines of ``img`` and ``label`` correspond. ``<name>.lineidx`` beside ``<name>.tsv`` has the byte
offset of each of its lines. Source: microsoft/GLIP, data/datasets/tsv.py.
"""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import IO, Any

import numpy as np
import yaml
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

logger = logging.getLogger(__name__)

REQUIRED_KEYS = ("img", "label")
# Bytes of a file of numbers that are parsed at once.
CHUNK_BYTES = 2**22


def tsv_paths(yaml_file: str, optional: Sequence[str] = ()) -> dict[str, str]:
    """The paths of the files that a YAML file names.

    Args:
        optional: further keys, besides :data:`REQUIRED_KEYS` and ``linelist``.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the YAML file has another format.
    """
    try:
        with open(yaml_file, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{yaml_file!r} is not a YAML file: {error}") from error
    names = (
        {k: content[k] for k in (*REQUIRED_KEYS, "linelist", *optional) if k in content}
        if type(content) is dict
        else {}
    )
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


def find_files(yaml_file: str, optional: Sequence[str] = ()) -> list[str]:
    """The files that the records are made of, besides the YAML file."""
    paths = list(tsv_paths(yaml_file, optional).values())
    return [*paths, *filter(os.path.isfile, map(_lineidx_path, paths))]


def _lineidx_path(tsv_file: str) -> str:
    return f"{os.path.splitext(tsv_file)[0]}.lineidx"


def label_lines(paths: Mapping[str, str]) -> Iterator[tuple[int, bytes]]:
    """The lines with annotations, numbered from 0.

    A line number of ``linelist`` that ``label`` does not have gives an empty line.
    """
    if "linelist" not in paths:
        with open(paths["label"], "rb") as file:
            yield from ((number, line) for number, line in enumerate(file) if line.strip())
        return
    lines = TsvLines(paths["label"])
    for number in _read_integers(paths["linelist"]):
        yield int(number), lines[number] if 0 <= number < len(lines) else b""


class TsvLines:
    """The lines of a TSV file, which are not kept in memory."""

    def __init__(self, tsv_file: str) -> None:
        """Errors as in :func:`line_ends`."""
        self.tsv_file = tsv_file
        self.ends = line_ends(tsv_file)

    def __len__(self) -> int:
        return len(self.ends)

    def place(self, number: int) -> tuple[int, int]:
        """The offset and size of a line in bytes.

        Raises:
            ValueError: there is no such line.
        """
        if type(number) is bool or not 0 <= number < len(self.ends):
            raise ValueError(f"{self.tsv_file!r} has no line {number!r}")
        begin = int(self.ends[number - 1]) if number else 0
        return begin, int(self.ends[number]) - begin

    def __getitem__(self, number: int) -> bytes:
        begin, size = self.place(number)
        with open(self.tsv_file, "rb") as file:
            return os.pread(file.fileno(), size, begin)

    def image_path(self, number: int) -> str:
        """The path by which :class:`TsvImages` opens the image of a line."""
        begin, size = self.place(number)
        return f"{TsvImages.PREFIX}{self.tsv_file}@{begin}+{size}"


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
