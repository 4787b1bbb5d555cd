"""Reading of text files with one entry per line."""

from __future__ import annotations

import codecs
from importlib.resources.abc import Traversable
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(file: Path | Traversable) -> list[str]:
    """The lines of a file in UTF-8, without empty ones at its end.

    A byte order mark is skipped; lines end with LF, CRLF or CR.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text in UTF-8; the message does not have its name.
    """
    content = file.read_bytes()
    # UTF-16 of names in ASCII without a mark is valid UTF-8 with zeros.
    if content.startswith(_UTF16) or b"\0" in content:
        raise ValueError("the file is UTF-16 or no text: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 ({error}): save it as UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    return text.split("\n") if text else []
