"""Files appear whole or not at all, also when the process is killed while it writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes; it changes only once the block is through.

    The bytes go to ``path`` + ``.partial`` first. That name is fixed, so that what a killed process
    left is overwritten and does not pile up.

    Raises:
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'.")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            # The bytes have to be on the disk before the name points to them.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, less the parts that the model says come from elsewhere.

    The model says so in ``checkpoint_excluded_prefixes``, e.g. ``("language_backbone.bert.",)`` for
    a frozen encoder that its config names.
    """
    excluded = excluded_prefixes(model)
    return {
        name: value for name, value in model.state_dict().items() if not name.startswith(excluded)
    }


def excluded_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names that are no part of the model's checkpoints."""
    return tuple(getattr(model, "checkpoint_excluded_prefixes", ()))


def optional_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names that a file may lack, or have without a place in the model.

    Only some configs have these parts, heads of losses and of tasks; the model says so in
    ``checkpoint_optional_prefixes``.
    """
    return tuple(getattr(model, "checkpoint_optional_prefixes", ()))


def loss_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names that only losses read.

    The model says so in ``checkpoint_loss_prefixes``.
    """
    return tuple(getattr(model, "checkpoint_loss_prefixes", ()))


def save_state(
    state_dict: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write ``{"model": state_dict}``.

    Args:
        dtype: of the stored floating-point tensors; default: their own. Loading casts them to
            the model's, so float16 is a way to ship weights at half the size.
    """
    stored: dict[str, Any] = {
        # A copy of its own, lest a view takes all the memory behind it along.
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True)
        for name, value in state_dict.items()
    }
    with atomic_open(path) as file:
        torch.save({"model": stored}, file)


def save_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the weights of ``model`` alone, see :func:`state_to_save` and :func:`save_state`."""
    save_state(state_to_save(model), path, dtype)
