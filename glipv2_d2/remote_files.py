"""Files at addresses such as ``s3://bucket/photos/1.jpg``, through the package fsspec."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import IO, Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Of fsspec: "zip://a.jpg::s3://bucket/photos.zip". A listed name with it would be another address.
_CHAIN = "::"


def is_remote(name: str) -> bool:
    """Whether a name is an address that begins with a protocol, and no path."""
    return _ADDRESS.match(name) is not None


def list_remote(address: str, suffixes: Collection[str], *, recursive: bool = False) -> list[str]:
    """The files that an address selects: itself, of a folder or a pattern those with a suffix.

    Args:
        suffixes: in lower case, such as ".jpg".
        recursive: also files in subfolders of a folder.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_remote`.
    """
    system, path = _system(address)
    try:
        if glob.has_magic(path):
            found = system.glob(path)
        elif system.isdir(path):
            found = system.find(path) if recursive else system.ls(path, detail=False)
        else:
            return [address]
        addresses = [str(system.unstrip_protocol(name)) for name in found]
    # Each file system has errors of its own, such as those of botocore.
    except Exception as error:
        raise _failed(address, "listed", error) from error
    return sorted(
        name
        for name in addresses
        if PurePosixPath(name).suffix.lower() in suffixes and _CHAIN not in name
    )


def open_remote(address: str) -> IO[bytes]:
    """The content of a file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, or the package for its protocol is missing.
    """
    system, path = _system(address)
    try:
        return io.BytesIO(system.cat_file(path))
    except Exception as error:
        raise _failed(address, "read", error) from error


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ValueError(
            f"{address!r} needs the package fsspec: pip install 'glipv2_d2[remote]'"
        ) from error
    if _CHAIN in address:
        raise ValueError(f"{address!r} has '{_CHAIN}': chained addresses are not supported")
    try:
        system, path = url_to_fs(address)
    except Exception as error:
        raise _failed(address, "opened", error) from error
    return system, str(path)


def _failed(address: str, done: str, error: Exception) -> Exception:
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{address!r} does not exist; check the address")
    reason = str(error) or type(error).__name__
    return ValueError(f"{address!r} cannot be {done}: {reason}")
