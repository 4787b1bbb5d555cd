"""Read checkpoint files safely, and detect whose parameter names they have."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glipv2_d2.weight_files import (
    WEIGHTS_KEY,
    read_safetensors,
    read_torch_file,
    require_state_dict,
)


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


def read_checkpoint(path: str | Path, *, key: str = WEIGHTS_KEY) -> dict[str, Any]:
    """Read a file of ``torch.save`` or safetensors without executing code from it.

    Args:
        path: a local file: ``{"model": state dict, ...}`` or a bare state dict.
        key: the config key that names the file, for the errors.

    Returns:
        ``{"model": name -> tensor on the CPU, ...}`` with the other entries unchanged, such as
        ``model_ema``, the averaged weights of GLIP's training.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged or not a checkpoint; the message describes its content.
    """
    is_safetensors = Path(path).suffix == ".safetensors"
    content = (read_safetensors if is_safetensors else read_torch_file)(path, key=key)
    if is_safetensors:
        # A name in it may be "model".
        content = {"model": content}
    checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
    require_state_dict(checkpoint["model"], path, key=key)
    return checkpoint
