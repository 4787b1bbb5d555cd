"""Files of weights: reading them safely, and telling what lies in them."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_REMEDY = "Fetch the file again, or name another one in MODEL.WEIGHTS."


class Layout(enum.Enum):
    """Whose names a state dict has."""

    NATIVE = "ours"
    GLIP = "GLIP"
    SWIN = "ImageNet Swin"


def recognise(names: Iterable[str]) -> Layout:
    """Tell the layout by the names, with or without ``module.`` in front.

    Names that nobody here knows count as ours, so that loading them says what does not fit.

    >>> recognise(["module.rpn.head.log_scale", "module.backbone.body.norm1.bias"])
    <Layout.GLIP: 'GLIP'>
    >>> recognise(["patch_embed.proj.weight", "head.bias"])
    <Layout.SWIN: 'ImageNet Swin'>
    """
    plain = [name.removeprefix("module.") for name in names]
    if any(name.startswith(("backbone.body.", "rpn.head.")) for name in plain):
        return Layout.GLIP
    if "patch_embed.proj.weight" in plain:
        return Layout.SWIN
    return Layout.NATIVE


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file that torch wrote, without running code that may lie in it.

    Args:
        path: a local file: ``{"model": state dict, ...}`` or a bare state dict.

    Returns:
        ``{"model": name -> tensor on the CPU, ...}``, the other entries as they are. Averaged
        weights that GLIP's training adds as ``model_ema`` are such an entry: ``model`` is used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint; the message says what it looks like.
    """
    path = Path(path)
    require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # An unpickler that meets foreign bytes raises anything.
        raise ValueError(_why_unreadable(path, error)) from error
    checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
    _require_state_dict(checkpoint["model"], path)
    return checkpoint


def require_file(path: str | Path) -> None:
    """Raise an error that says what is wrong where ``path`` is not a file with content.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a directory or an empty file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"weights '{path}' do not exist (looked from {Path.cwd()}). Correct MODEL.WEIGHTS, or, "
            "when resuming, the file last_checkpoint of the output folder."
        )
    if path.is_dir():
        raise ValueError(
            f"weights '{path}' are a directory; MODEL.WEIGHTS names a file, e.g. "
            f"'{path / 'model_final.pth'}'."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"weights '{path}' are an empty file. {_REMEDY}")


def _require_state_dict(model: Any, path: Path) -> None:
    if isinstance(model, dict) and model and all(isinstance(v, Tensor) for v in model.values()):
        return
    if isinstance(model, dict):
        others = [str(name) for name, value in model.items() if not isinstance(value, Tensor)]
        found = f"entries that are no tensors ({', '.join(others[:10])})" if others else "nothing"
    else:
        found = f"a {type(model).__name__}"
    raise ValueError(
        f"weights '{path}' are no state dict and have none under 'model', but {found}. {_REMEDY}"
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    # torch names what it refuses to build, e.g. "unsupported GLOBAL posix.system".
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"weights '{path}' hold more than tensors and plain values ({refused[1]}), and reading "
            "that could run code. Where you trust the file, open it with "
            "torch.load(..., weights_only=False) and save its 'model' entry alone."
        )
    with path.open("rb") as file:
        start = file.read(64)
    size = f"{path.stat().st_size:,} bytes"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        looks = "a web page, as saved when a download link asks for something first"
    elif start.startswith(b"version https://git-lfs"):
        looks = "a Git LFS pointer, not the file that it stands for"
    elif start.startswith(b"PK"):
        looks = f"a checkpoint of which a part is missing or damaged ({size})"
    else:
        looks = f"no file of torch.save, or a damaged one ({size})"
    return f"weights '{path}' look like {looks}; they start with {start[:32]!r}. {_REMEDY}"
