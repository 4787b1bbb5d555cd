"""Parsing of arguments that several tools share."""

from __future__ import annotations

import argparse
import glob
import io
import os
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
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
            matches = list_files(Path(name), IMAGE_SUFFIXES)
        elif not os.path.lexists(name) and glob.has_magic(name):
            matches = glob_files(name, IMAGE_SUFFIXES)
        else:
            matches = [Path(name)]
        if not matches:
            raise ValueError(f"no image in --input {name!r}; pass files, folders or patterns")
        paths += matches
    return list(dict.fromkeys(paths))


def list_files(folder: Path, suffixes: Collection[str], *, recursive: bool = False) -> list[Path]:
    """The files in a folder with one of the suffixes (in lower case), sorted.

    A subfolder with such a name is listed, so that it is reported as no image.

    Args:
        recursive: the files in subfolders instead; links to folders are not followed.

    Raises:
        ValueError: the folder cannot be listed.
    """
    try:
        paths = folder.rglob("*") if recursive else folder.iterdir()
        found = [p for p in paths if p.suffix.lower() in suffixes]
        return sorted(p for p in found if not (recursive and p.is_dir()))
    except OSError as error:
        raise ValueError(f"--input {str(folder)!r} cannot be listed: {error.strerror}") from error


def glob_files(pattern: str, suffixes: Collection[str]) -> list[Path]:
    """The files of a glob pattern, and folders with one of the suffixes, sorted.

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
        if (path.suffix.lower() in suffixes or not os.path.isdir(path))
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
    """The class names of a file, see :func:`read_class_lines`."""
    return [name for name, _ in read_class_lines(path)]


def read_class_lines(path: Path) -> list[tuple[str, float | None]]:
    """Read a file with one class name per line, in UTF-8, with or without its threshold.

    A line is ``cat``, or ``cat: 0.4`` with the minimum score of the name.

    Raises:
        ValueError: the file cannot be read or is empty, a name is empty, or what follows the last
            colon of a line is not a score.
    """
    source = f"--classes-file {path}"
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    if not lines:
        raise ValueError(f"{source} is empty; write one name per line")
    found: list[tuple[str, float | None]] = []
    thresholds: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        name, colon, score = line.rpartition(":")
        if not colon:
            found.append((line.strip(), None))
            continue
        threshold = _parse_score(score)
        if threshold is None:
            raise ValueError(
                f"line {number} of {source}, {quote(line)}, has no threshold after its colon: "
                "write 'cat: 0.4', a number from 0 to 1, or the name without a colon"
            )
        if thresholds.setdefault(name.strip(), threshold) != threshold:
            raise ValueError(f"{source} has two thresholds of {quote(name.strip())}; keep one")
        found.append((name.strip(), threshold))
    _check_not_empty([name for name, _ in found], source)
    return found


def parse_thresholds(values: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """The default and the thresholds per name of ``--threshold``.

    Args:
        values: each has one or more of them, between commas.

    Raises:
        ValueError: one is neither a score nor a name with its score, or the default is there twice.

    >>> parse_thresholds(["0.3", "cat=0.4, coffee cup=0.5"])
    (0.3, {'cat': 0.4, 'coffee cup': 0.5})
    """
    defaults: list[float] = []
    per_name: dict[str, float] = {}
    for part in (part for value in values for part in value.split(",")):
        name, equals, score = part.rpartition("=")
        threshold = _parse_score(score)
        if threshold is None or (equals and not name.strip()):
            raise ValueError(
                f"--threshold {quote(part.strip())} is neither a number from 0 to 1 nor a name "
                "with one: write 0.3, cat=0.4 or '0.3, cat=0.4, coffee cup=0.5'"
            )
        if equals:
            if per_name.setdefault(name.strip(), threshold) != threshold:
                raise ValueError(f"--threshold has two values of {quote(name.strip())}; pass one")
        else:
            defaults.append(threshold)
    if len(defaults) > 1:
        raise ValueError(
            f"--threshold has the defaults {' and '.join(map(str, defaults))}; pass one, and "
            "others with their names: cat=0.4"
        )
    return (defaults[0] if defaults else None), per_name


def _parse_score(text: str) -> float | None:
    """The number from 0 to 1 of a text, or None."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


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
