"""Write files atomically, and select which weights of a model are saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from glipv2_d2.layers.checkpoint_prefixes import excluded_prefixes


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes; the file is replaced when the block ends without an error.

    The bytes are written to ``path`` + ``.partial`` first. The name is fixed, so that the file of a
    killed process is overwritten by the next one.

    Raises:
        FileNotFoundError: its folder does not exist.
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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8 with :func:`atomic_open`, and create the folder if necessary.

    Bytes of a file name that are not UTF-8 are written as JSON escapes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without weights that checkpoints omit (``checkpoint_excluded``)."""
    excluded = excluded_prefixes(model)
    return {
        name: value for name, value in model.state_dict().items() if not name.startswith(excluded)
    }


def save_state(
    state_dict: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write ``{"model": state_dict}``.

    Args:
        dtype: dtype of the stored floating-point tensors; default: unchanged. Loading casts to
            the dtype of the model, so float16 halves the size of released weights.
    """
    stored: dict[str, Any] = {
        # Copy, because saving a view saves its whole storage.
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True)
        for name, value in state_dict.items()
    }
    with atomic_open(path) as file:
        torch.save({"model": stored}, file)


def save_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write only the weights of ``model``, see :func:`state_to_save` and :func:`save_state`."""
    save_state(state_to_save(model), path, dtype)
