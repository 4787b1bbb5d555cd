"""Load configs, with errors that suggest the nearest key."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

# Registers the modules that configs refer to by name.
import glipv2_d2.modeling  # noqa: F401
from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data.custom import register_custom
from glipv2_d2.projects import add_project_configs

logger = logging.getLogger(__name__)


def load_config(path: str | Path = "", opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a file and single options, on top of the defaults.

    The defaults are those of Detectron2, of :func:`~glipv2_d2.config.add_glipv2_config` and of the
    installed projects; for those of a GLIP model, let the file inherit from
    ``configs/glip/Base-GLIP.yaml``.
    ``MODEL.DEVICE`` falls back to the CPU if CUDA is not available. The datasets of
    ``DATASETS.CUSTOM`` are registered.

    Args:
        path: a YAML file; "" for the defaults.
        opts: alternating keys and values, as on Detectron2's command lines.

    Returns:
        A frozen config.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key does not exist, or a value has the wrong type.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    add_project_configs(cfg)
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
    # AttributeError: the file is a list or a string.
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path!r} is not a YAML mapping of keys: {error}") from error
    _check_keys(cfg, keys, source=f"config file {path!r}")
    try:
        cfg.merge_from_file(path)
    except ValueError as error:
        raise ValueError(f"config file {path!r}: {error}") from error


def _merge_opts(cfg: CfgNode, opts: list[Any]) -> None:
    if len(opts) % 2 != 0:
        raise ValueError(f"config options must be pairs of KEY VALUE, got {len(opts)}: {opts}")
    _check_keys(cfg, opts[::2], source="the command line")
    cfg.merge_from_list(opts)


def _check_keys(cfg: CfgNode, keys: Sequence[str], *, source: str) -> None:
    known = _flat_keys(cfg)
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{source}: config key {key!r} does not exist{hint}")


def _flat_keys(node: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted key ``A.B.C`` of every value."""
    return list(_walk(node, prefix))


def _walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
