"""Parsing of arguments that several tools share."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def expand_image_paths(inputs: Sequence[str]) -> list[Path]:
    """The image files that ``--input`` selects, each once.

    Args:
        inputs: files, folders (without their subfolders) and glob patterns.

    Raises:
        ValueError: a folder or a pattern matches no image file. A missing file is returned, so that
            the caller can skip it as it skips other unreadable images.
    """
    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif not path.exists() and glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        else:
            matches = [path]
        if not matches:
            raise ValueError(f"no image in --input {name!r}; pass files, folders or patterns")
        paths += matches
    return list(dict.fromkeys(paths))


def parse_class_names(text: str, option: str = "--classes") -> list[str]:
    """Split class names at commas.

    Raises:
        ValueError: a name is empty.

    >>> parse_class_names("cat, coffee cup")
    ['cat', 'coffee cup']
    """
    return _check_not_empty([name.strip() for name in text.split(",")], f"{option} {text!r}")


def read_class_names(path: Path) -> list[str]:
    """Read class names from a file with one name per line.

    Raises:
        ValueError: the file cannot be read, or a name is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes-file {path} cannot be read: {error}") from error
    return _check_not_empty([line.strip() for line in lines], f"--classes-file {path}")


def _check_not_empty(names: list[str], source: str) -> list[str]:
    if "" in names:
        raise ValueError(f"name {names.index('') + 1} of {source} is empty; remove or replace it")
    return names


def check_minimums(args: argparse.Namespace, minimums: Mapping[str, int]) -> None:
    """Compare arguments with their smallest valid values. None is valid.

    Raises:
        ValueError: an argument is too small.
    """
    for name, minimum in minimums.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {value}; it must be at least {minimum}")
