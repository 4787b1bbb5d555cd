"""Loading JSON files of any Unicode encoding, with one kind of error for every fault of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from detectron2.utils.file_io import PathManager


def load_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON, is nested too deeply, or has a number of thousands of
            digits.
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        text = file.read()
    try:
        return json.loads(text)
    # Besides invalid JSON and encodings: nesting, and numbers beyond Python's limit of digits.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a valid JSON file ({type(error).__name__}: {error}): "
            "export it again, or correct it"
        ) from error


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The nonempty lines of a file of JSON lines in UTF-8, with their numbers from 1.

    ``json.loads`` takes them as they are, also the first one with a byte order mark.
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line
