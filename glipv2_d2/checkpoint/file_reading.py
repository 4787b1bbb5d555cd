"""Read checkpoint files safely, and detect whose parameter names they have."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Its files may also be named by last_checkpoint.
_WEIGHTS_KEY = "MODEL.WEIGHTS"


class Layout(enum.Enum):
    """Naming scheme of a state dict."""

    NATIVE = "GLIPv2"
    GLIP = "GLIP"
    SWIN = "ImageNet Swin"


def detect_layout(names: Iterable[str]) -> Layout:
    """Detect the layout from parameter names, with or without the prefix ``module.``.

    Unknown names count as native, so that loading them reports what does not match.

    >>> detect_layout(["module.rpn.head.log_scale", "module.backbone.body.norm1.bias"])
    <Layout.GLIP: 'GLIP'>
    >>> detect_layout(["patch_embed.proj.weight", "head.bias"])
    <Layout.SWIN: 'ImageNet Swin'>
    """
    plain = [name.removeprefix("module.") for name in names]
    if any(name.startswith(("backbone.body.", "rpn.head.")) for name in plain):
        return Layout.GLIP
    if "patch_embed.proj.weight" in plain:
        return Layout.SWIN
    return Layout.NATIVE


def read_checkpoint(path: str | Path, *, key: str = _WEIGHTS_KEY) -> dict[str, Any]:
    """Read a file of ``torch.save`` without executing code from it.

    Args:
        path: a local file: ``{"model": state dict, ...}`` or a bare state dict.
        key: the config key that names the file, for the errors.

    Returns:
        ``{"model": name -> tensor on the CPU, ...}`` with the other entries unchanged, such as
        ``model_ema``, the averaged weights of GLIP's training.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a checkpoint; the message describes its content.
    """
    path = Path(path)
    require_file(path, key=key)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # Unpickling foreign bytes may raise anything.
        raise ValueError(_why_unreadable(path, key, error)) from error
    checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
    _require_state_dict(checkpoint["model"], path, key)
    return checkpoint


def require_file(path: str | Path, *, key: str = _WEIGHTS_KEY) -> None:
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
            f"{key}{resuming if key == _WEIGHTS_KEY else ''}."
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


def _require_state_dict(model: Any, path: Path, key: str) -> None:
    if isinstance(model, dict) and model and all(isinstance(v, Tensor) for v in model.values()):
        return
    if isinstance(model, dict):
        others = [str(name) for name, value in model.items() if not isinstance(value, Tensor)]
        found = f"entries that are not tensors ({', '.join(others[:10])})" if others else "nothing"
    else:
        found = f"a {type(model).__name__}"
    raise ValueError(
        f"weights '{path}' are not a state dict and have none under 'model', but {found}. "
        f"{_remedy(key)}"
    )


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
    return f"weights '{path}' are probably {kind}; they start with {start[:32]!r}. {_remedy(key)}"
