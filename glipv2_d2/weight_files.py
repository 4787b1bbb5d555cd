"""Read files of weights without executing code from them, and notice their damage."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

# Its files may also be named by last_checkpoint.
WEIGHTS_KEY = "MODEL.WEIGHTS"
# The first bytes of a zip file.
_ZIP = b"PK\x03\x04"


def quote(text: str, limit: int = 80) -> str:
    """``text`` for a message: its first ``limit`` characters, all of them printable.

    >>> quote("backbone.weight"), quote("x" * 1000, 3)
    ('backbone.weight', 'xxx... (1,000 characters)')
    """
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}... ({len(text):,} characters)"


def read_torch_file(path: str | Path, *, key: str = WEIGHTS_KEY) -> Any:
    """The content of a file of ``torch.save``, read without executing code from it.

    The checksums of the file are verified, which ``torch.load`` does not. Files from before torch
    1.6 have none.

    Args:
        key: the config key that names the file, for the errors.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, no file of torch, or has more than tensors and plain values.
    """
    path = Path(path)
    require_file(path, key=key)
    with path.open("rb") as file:
        try:
            if file.read(len(_ZIP)) == _ZIP:
                _verify_zip(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # Unpickling foreign bytes may raise anything.
            raise ValueError(_why_unreadable(path, key, error)) from error


def read_safetensors(path: str | Path, *, key: str = WEIGHTS_KEY) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which has no checksums; errors as above."""
    path = Path(path)
    require_file(path, key=key)
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # Its errors depend on the version.
        raise ValueError(_why_unreadable(path, key, error)) from error


def _verify_zip(file: IO[bytes]) -> None:
    """
    Raises:
        Exception: the file is not a complete zip file, or a checksum is wrong.
    """
    with zipfile.ZipFile(file) as archive:
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            raise pickle.UnpicklingError("unsupported GLOBAL TorchScript")
        # torch.save compresses nothing, but torch.load expands what is compressed, to any size.
        num_bytes = sum(part.file_size for part in archive.infolist())
        if num_bytes > file.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile(
                f"its parts expand to {num_bytes:,} bytes, more than torch.save writes"
            )
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of its part {quote(damaged)} is wrong")


def require_file(path: str | Path, *, key: str = WEIGHTS_KEY) -> None:
    """Check that ``path``, which the config key ``key`` names, is a non-empty file.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: it is a directory or an empty file.
    """
    path = Path(path)
    if not path.exists():
        resuming = " or, when resuming, the file last_checkpoint in the output folder"
        raise FileNotFoundError(
            f"weights '{path}' do not exist (working directory: {Path.cwd()}). Correct "
            f"{key}{resuming if key == WEIGHTS_KEY else ''}."
        )
    if path.is_dir():
        raise ValueError(
            f"weights '{path}' are a directory; set {key} to a file, e.g. "
            f"'{path / 'model_final.pth'}'."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"weights '{path}' are an empty file. {_remedy(key)}")


def _remedy(key: str) -> str:
    return f"Download the file again, or set {key} to another one."


def require_state_dict(model: Any, path: str | Path, *, key: str = WEIGHTS_KEY) -> None:
    """Check that ``model``, read from ``path``, maps names to tensors of finite numbers.

    Raises:
        ValueError: it does not; the message lists the entries.
    """
    if not isinstance(model, dict):
        others = f"a {type(model).__name__}"
    elif not model:
        others = "nothing"
    else:
        names = [name for name, v in model.items() if not isinstance(v, Tensor)]
        others = f"entries that are not tensors ({_first(names)})" if names else ""
    if others:
        raise ValueError(
            f"weights '{path}' are not a state dict and have none under 'model', but {others}. "
            f"{_remedy(key)}"
        )
    if odd := [name for name in model if not isinstance(name, str) or not name]:
        raise ValueError(f"weights '{path}' have names that are no text: {_first(odd)}")
    defects = {name: defect for name, v in model.items() if (defect := _defect(v))}
    if defects:
        listed = _first(f"{quote(name)} {defect}" for name, defect in defects.items())
        raise ValueError(f"weights '{path}' are damaged: {listed}. {_remedy(key)}")


def _first(items: Iterable[Any]) -> str:
    """The first ten of ``items``, and how many others there are."""
    shown = [item if isinstance(item, str) else repr(item) for item in items]
    more = f" and {len(shown) - 10} others" if len(shown) > 10 else ""
    return ", ".join(quote(item, 200) for item in shown[:10]) + more


def _defect(value: Tensor) -> str | None:
    """Why a tensor cannot be weights, or None."""
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return "has no plain values"
    storage = value.untyped_storage()
    if value.numel() * value.itemsize > storage.nbytes():
        # An expanded tensor, of any size: its numbers once.
        count = storage.nbytes() // value.itemsize
        value = value.new_empty(0).set_(storage, 0, (count,), (1,))
    if not (value.is_floating_point() or value.is_complex()):
        return None
    # torch has no isfinite for numbers of eight bits.
    value = value.float() if value.itemsize == 1 else value
    if torch.isfinite(value).all():
        return None
    return "has nan" if torch.isnan(value).any() else "has infinite values"


def _why_unreadable(path: Path, key: str, error: Exception) -> str:
    # The message of torch contains the refused type, e.g. "unsupported GLOBAL posix.system".
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"weights '{path}' contain more than tensors and plain values ({refused[1]}), and "
            "loading them could execute code. If you trust the file, open it with "
            "torch.load(..., weights_only=False) and save only its 'model' entry."
        )
    with path.open("rb") as file:
        start = file.read(64)
    size = f"{path.stat().st_size:,} bytes"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        kind = "a web page, as saved when a download link requires a confirmation"
    elif start.startswith(b"version https://git-lfs"):
        kind = "a Git LFS pointer in place of the file"
    elif start.startswith(b"PK"):
        kind = f"a truncated or damaged checkpoint ({size})"
    else:
        kind = f"a damaged file, or not a file of torch.save ({size})"
    why = quote(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
    return (
        f"weights '{path}' are probably {kind}; they start with {start[:32]!r} ({why}). "
        f"{_remedy(key)}"
    )
