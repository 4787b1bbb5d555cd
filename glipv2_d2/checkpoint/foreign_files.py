"""Read the weights of Detectron2's and Detectron's model zoos (.pkl) and of pycls (.pyth)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glipv2_d2.checkpoint.restricted_pickle import RefusedGlobal, StoredArray, read_pickle
from glipv2_d2.trust import unsafe_files_allowed, unsafe_remedy
from glipv2_d2.weight_files import quote, read_torch_file, require_file, require_state_dict

SUFFIXES = (".pkl", ".pyth")


def read_foreign(path: str | Path) -> dict[str, Any]:
    """Read a file with one of the :data:`SUFFIXES`, without executing code from it.

    Returns:
        What Detectron2's checkpointer makes of the file: ``model``, name -> tensor; ``__author__``;
        and ``matching_heuristics``, whether its names are to be matched with those of the model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, has no weights, or requests code.
    """
    path = Path(path)
    checkpoint = _read_pycls(path) if path.suffix == ".pyth" else _read_zoo(path)
    model = checkpoint["model"]
    if isinstance(model, dict):
        model = {name: _to_tensor(value, name, path) for name, value in model.items()}
    require_state_dict(model, path)
    return {**checkpoint, "model": model}


def _read_zoo(path: Path) -> dict[str, Any]:
    require_file(path)
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"weights '{path}' are not a dict of arrays, but {type(content).__name__}")
    if "model" in content and "__author__" in content:
        return {
            "model": content["model"],
            "__author__": quote(str(content["__author__"])),
            "matching_heuristics": content.get("matching_heuristics") is True,
        }
    # Detectron's detectors have "blobs", its backbones do not.
    blobs = content.get("blobs", content)
    if isinstance(blobs, dict):
        blobs = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _read_pycls(path: Path) -> dict[str, Any]:
    content = read_torch_file(path)
    model = content.get("model_state") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"weights '{path}' have no 'model_state': they are no file of pycls")
    model = {k: v for k, v in model.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}


def _unpickle(path: Path) -> Any:
    if unsafe_files_allowed():
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    try:
        return read_pickle(path)
    except RefusedGlobal as refused:
        raise ValueError(
            f"weights '{path}' contain more than arrays and plain values "
            f"({quote(str(refused))}), and loading them could execute code. {unsafe_remedy()}"
        ) from refused
    except OSError:
        raise
    except Exception as error:  # Unpickling foreign bytes may raise anything.
        raise ValueError(
            f"weights '{path}' are probably a truncated or damaged pickle "
            f"({path.stat().st_size:,} bytes: {quote(str(error))}). Download the file again, or "
            "set MODEL.WEIGHTS to another one."
        ) from error


def _to_tensor(value: Any, name: Any, path: Path) -> Tensor | Any:
    """Arrays as tensors, and other values unchanged."""
    if isinstance(value, np.ndarray):  # of an unsafe file
        return torch.from_numpy(value)
    if not isinstance(value, StoredArray):
        return value
    try:
        return value.tensor()
    # What a damaged array has in place of a shape or of bytes may be anything.
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"weights '{path}' are damaged: {quote(str(name))} is {quote(str(error))}"
        ) from error
