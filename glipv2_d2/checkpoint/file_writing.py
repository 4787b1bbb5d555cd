"""Write the weights of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glipv2_d2.file_writing import atomic_open


def save_state(
    state_dict: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write ``{"model": state_dict}``.

    Args:
        dtype: dtype of the stored floating-point tensors; default: unchanged. Loading casts to
            the dtype of the model, so float16 halves the size of released weights.

    Raises:
        ValueError: a tensor has numbers that are not finite or too large for ``dtype``.
    """
    stored: dict[str, Any] = {
        # Copy, because saving a view saves its whole storage.
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True)
        for name, value in state_dict.items()
    }
    if bad := [n for n, v in stored.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(
            f"'{path}' is not written: nan or numbers too large for {stored[bad[0]].dtype} in "
            f"{', '.join(bad[:10])}"
        )
    with atomic_open(path) as file:
        torch.save({"model": stored}, file)


def save_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write only the weights of ``model``, see :func:`save_state`."""
    save_state(model.state_dict(), path, dtype)
