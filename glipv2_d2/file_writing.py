"""Write files atomically, with errors that name the file, and JSON that every parser reads."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

# No space, no quota, and the limit on a file's size.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes; the file is replaced when the block ends without an error.

    The bytes are written to ``path`` + ``.partial`` first. The name is fixed, so that the file of a
    killed process is overwritten by the next one.

    Raises:
        FileNotFoundError: its folder does not exist.
        OSError: the disk is full; the message names the file and what is kept.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write '{path}': the folder '{path.parent}' does not exist."
        )
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            # The content must be on the disk before the file is renamed.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if full := disk_full(error):
            kept = "The file that was there is kept" if path.exists() else "No part of it is kept"
            raise OSError(
                full.errno, f"cannot write '{path}': {os.strerror(full.errno or 0)}. {kept}"
            ) from error
        raise


def disk_full(error: BaseException | None) -> OSError | None:
    """The error of a full disk among ``error`` and its causes, or None.

    torch reports one as a RuntimeError about positions in the file.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def atomic_write(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8 with :func:`atomic_open`, and create the folder if necessary.

    Bytes of a file name that are not UTF-8 are written as JSON escapes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def dump_json(
    content: Any,
    *,
    indent: int | None = None,
    ensure_ascii: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """``content`` as JSON, with null in place of nan and infinity, which JSON does not have.

    >>> dump_json({"AP": 12.5, "APl": float("nan")})
    '{"AP": 12.5, "APl": null}'
    """
    options: dict[str, Any] = {"indent": indent, "ensure_ascii": ensure_ascii, "default": default}
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(without_nan(content), allow_nan=False, **options)


def without_nan(value: Any) -> Any:
    """Copy dicts and lists with None in place of nan and infinity.

    >>> without_nan({"bbox": {"AP": 12.5, "APl": float("nan")}})
    {'bbox': {'AP': 12.5, 'APl': None}}
    """
    if isinstance(value, dict):
        return {without_nan(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
