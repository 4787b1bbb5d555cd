"""Configs with errors that help."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

# Registers the model's parts, which configs name.
import glipv2_d2.modeling  # noqa: F401
from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data.custom import register_custom

logger = logging.getLogger(__name__)


def load_config(path: str | Path = "", opts: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's and our defaults, then a file, then single keys.

    Where CUDA is asked for but absent, the model goes to the CPU. The config's own data sets
    (``DATASETS.CUSTOM``) are known by name from here on.

    Args:
        path: a YAML file; "" for the defaults.
        opts: keys and values in turn, as on Detectron2's command lines.

    Returns:
        A frozen config.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key does not exist, or a value is of the wrong kind.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    if path:
        _merge_file(cfg, str(path))
    _merge_opts(cfg, list(opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("CUDA is not available: MODEL.DEVICE is cpu, not %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    register_custom(cfg.DATASETS.CUSTOM)
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"config file {path!r} does not exist")
    try:
        loaded = CfgNode.load_yaml_with_base(path, allow_unsafe=True)
        keys = _flat_keys(loaded)
    # A list or a text has no items.
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path!r} is not a YAML table of keys: {error}") from error
    _check_keys(cfg, keys, source=f"config file {path!r}")
    try:
        cfg.merge_from_file(path)
    except ValueError as error:
        raise ValueError(f"config file {path!r}: {error}") from error


def _merge_opts(cfg: CfgNode, opts: list[Any]) -> None:
    if len(opts) % 2 != 0:
        raise ValueError(f"config options are pairs of KEY VALUE, these are {len(opts)}: {opts}")
    _check_keys(cfg, opts[::2], source="the command line")
    cfg.merge_from_list(opts)


def _check_keys(cfg: CfgNode, keys: Sequence[str], *, source: str) -> None:
    known = _flat_keys(cfg)
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{source}: there is no config key {key!r}{hint}")


def _flat_keys(node: dict[str, Any], prefix: str = "") -> list[str]:
    """``A.B.C`` of every value."""
    return list(_walk(node, prefix))


def _walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
