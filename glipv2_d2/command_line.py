"""Parsing of arguments that several tools share."""

from __future__ import annotations

import argparse
import glob
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from glipv2_d2.images import IMAGE_SUFFIXES
from glipv2_d2.messages import quote
from glipv2_d2.text_files import read_lines

FAILED = 2
"""Exit code of a command that failed."""


def expand_image_paths(inputs: Sequence[str]) -> list[Path]:
    """The image files that ``--input`` selects, each once.

    Args:
        inputs: files, folders (without their subfolders) and glob patterns, whose ``**`` follows no
            symbolic links.

    Raises:
        ValueError: a folder or a pattern matches no image file, or a folder cannot be listed. A
            missing file is returned, so that the caller can skip it as it skips other unreadable
            images.
    """
    paths: list[Path] = []
    for name in inputs:
        if os.path.isdir(name):
            matches = _images_in(Path(name))
        elif not os.path.lexists(name) and glob.has_magic(name):
            matches = _matches(name)
        else:
            matches = [Path(name)]
        if not matches:
            raise ValueError(f"no image in --input {name!r}; pass files, folders or patterns")
        paths += matches
    return list(dict.fromkeys(paths))


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise ValueError(f"--input {str(folder)!r} cannot be listed: {error.strerror}") from error


def _matches(pattern: str) -> list[Path]:
    """The files of a glob pattern, and folders with the name of an image.

    As in ``glob.glob``, ``*`` matches no hidden files; but links in circles are not followed.
    """
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, below = Path(*parts[:first]), parts[first:]
    if below[-1] == "**":
        below = (*below, "*")
    with_hidden = any(part.startswith(".") for part in below)
    return sorted(
        path
        for path in root.glob(os.path.join(*below))
        if (path.suffix.lower() in IMAGE_SUFFIXES or not os.path.isdir(path))
        and (with_hidden or not any(p.startswith(".") for p in path.relative_to(root).parts))
    )


def printable(path: str | Path) -> str:
    """A path as one line of text: line breaks, escape sequences and invalid UTF-8 are escaped."""
    return str(path) if str(path).isprintable() else repr(str(path))


def escape_unprintable_output() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def check_output_folder(path: Path, option: str) -> None:
    """Create an output folder before the work whose results it gets.

    Raises:
        ValueError: it is a file, or cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if os.path.isfile(path) else error.strerror
        raise ValueError(
            f"{option} {str(path)!r}: the folder cannot be created ({reason}); pass another one"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {str(path)!r} is not writable; pass another folder")


def check_output_file(path: Path | None, option: str) -> None:
    """Check that a file can be written before the work whose results it gets; None is valid.

    Raises:
        ValueError: it is a folder, or its folder cannot be created or written.
    """
    if path is None:
        return
    if os.path.isdir(path):
        raise ValueError(f"{option} {str(path)!r} is a folder; pass the name of a file")
    check_output_folder(path.parent, option)


def report_failure(error: Exception) -> int:
    """Print why a command failed; an unexpected error with its traceback. Returns the exit code."""
    if not isinstance(error, (OSError, KeyError, ValueError)):
        traceback.print_exception(error)
    sys.stderr.write(f"error: {error}\n")
    return FAILED


def parse_class_names(text: str, option: str = "--classes") -> list[str]:
    """Split class names at commas.

    Raises:
        ValueError: a name is empty.

    >>> parse_class_names("cat, coffee cup")
    ['cat', 'coffee cup']
    """
    return _check_not_empty([name.strip() for name in text.split(",")], f"{option} {quote(text)}")


def read_class_names(path: Path) -> list[str]:
    """Read class names from a file with one name per line, in UTF-8.

    Raises:
        ValueError: the file cannot be read or is empty, or a name is empty.
    """
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--classes-file {path} cannot be read: {error}") from error
    if not lines:
        raise ValueError(f"--classes-file {path} is empty; write one name per line")
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
