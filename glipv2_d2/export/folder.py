"""The folder of an exported model: written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from glipv2_d2.file_writing import disk_full

SETTINGS_FILE = "export.json"


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which takes its name if the block ends without an error.

    Raises:
        ValueError: ``folder`` has files, or is a file.
        OSError: it cannot be written; the message names it.
    """
    check_absent(folder)
    staging = folder.with_name(folder.name + ".partial")
    try:
        # What a killed process left.
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        check_absent(folder)
        os.replace(staging, folder)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if full := disk_full(error):
            reason = os.strerror(full.errno or 0)
            raise OSError(full.errno, f"cannot write '{folder}': {reason}") from error
        raise


def check_absent(folder: Path) -> None:
    """Raise a ValueError if the folder has files, or is a file."""
    if folder.is_dir():
        if next(folder.iterdir(), None) is None:
            return
    elif not os.path.lexists(folder):
        return
    raise ValueError(f"'{folder}' exists: choose another folder for the export, or remove it first")


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
