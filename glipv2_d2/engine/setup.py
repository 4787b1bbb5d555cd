"""Load configs, with errors that suggest the nearest key."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from fvcore.common.config import BASE_KEY
from yaml.constructor import ConstructorError

# Registers the modules that configs refer to by name.
import glipv2_d2.modeling  # noqa: F401
from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data.custom import register_custom
from glipv2_d2.model_folder import add_delta, read_config
from glipv2_d2.projects import add_project_configs
from glipv2_d2.trust import unsafe_files_allowed, unsafe_remedy

logger = logging.getLogger(__name__)

_MAX_SHOWN = 80
_MAX_FILES = 100


def load_config(path: str | Path = "", opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a file and single options, on top of the defaults.

    The defaults are those of Detectron2, of :func:`~glipv2_d2.config.add_glipv2_config` and of the
    installed projects; for those of a GLIP model, let the file inherit from
    ``configs/glip/Base-GLIP.yaml``.
    ``MODEL.DEVICE`` falls back to the CPU if CUDA is not available. The datasets of
    ``DATASETS.CUSTOM`` are registered. The config of a fine-tuned model has the base and the delta
    of its folder.

    Args:
        path: a YAML file; "" for the defaults.
        opts: alternating keys and values, as on Detectron2's command lines.

    Returns:
        A frozen config.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key does not exist, a value has the wrong type, or the file or one of its
            bases (``_BASE_``) has a tag that could execute code.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    add_project_configs(cfg)
    if path:
        _merge_file(cfg, str(path))
    _merge_opts(cfg, list(opts))
    add_delta(cfg, path)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("CUDA is not available: MODEL.DEVICE is cpu, not %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    register_custom(cfg.DATASETS.CUSTOM)
    return cfg


def load_foreign_config(path: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """:func:`load_config` for a file of unknown origin: no code in it is run, no base file read.

    Args:
        path: a YAML file, or a file of weights with a config (:mod:`glipv2_d2.model_folder`).
        opts: as of :func:`load_config`.

    Raises:
        FileNotFoundError, ValueError: as for :func:`load_config`; also ValueError for tags of
            Python objects and for ``_BASE_``.
    """
    content = read_config(Path(path))
    if not isinstance(content, dict) or BASE_KEY in content:
        raise ValueError(f"config file '{path}' must be a mapping of keys, without {BASE_KEY}")
    cfg = load_config().clone()
    cfg.defrost()
    try:
        loaded = CfgNode(content)
        _check_keys(cfg, _walk(loaded, ""), source=f"config file '{path}'")
        cfg.merge_from_other_cfg(loaded)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"config file '{path}': {error}") from error
    _merge_opts(cfg, list(opts))
    add_delta(cfg, path)
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"config file {path!r} does not exist")
    try:
        loaded = _load_with_bases(path)
        keys = _walk(loaded, "")
        _check_keys(cfg, keys, source=f"config file {path!r}")
    # AttributeError, TypeError: the file is a list, a string or empty. AssertionError: a section in
    # place of a value of the base.
    except (yaml.YAMLError, AttributeError, TypeError, AssertionError, UnicodeError) as error:
        if isinstance(error, ConstructorError) and "for the tag" in str(error.problem):
            raise ValueError(
                f"config file {path!r} has a tag that is no plain value, and loading it could "
                f"execute code: {error}. Write the value itself. {unsafe_remedy()}"
            ) from error
        raise ValueError(f"config file {path!r} is not a YAML mapping of keys: {error}") from error
    except RecursionError as error:
        raise ValueError(
            f"config file {path!r} is nested too deeply, or is a base of itself (_BASE_)"
        ) from error
    try:
        cfg.merge_from_other_cfg(CfgNode(loaded))
    # AssertionError: a value in place of a section.
    except (ValueError, AssertionError) as error:
        raise ValueError(f"config file {path!r}: {error}") from error


def _load_with_bases(path: str) -> dict[str, Any]:
    class Loader(_ConfigFile):
        """Counts the files of one config."""

        files: ClassVar[list[str]] = []

    try:
        return Loader.load_yaml_with_base(path)
    except UnicodeError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config file {path!r}: {error}") from error
    # A base that is a folder, or a URL without an answer.
    except (OSError, ValueError) as error:
        raise ValueError(f"config file {path!r}: {error}") from error


class _ConfigFile(CfgNode):
    """Loads YAML files of plain values, where Detectron2 by default executes code from them.

    The files of the installed detectron2 are excepted: some have Python expressions.
    """

    files: ClassVar[list[str]]

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Detectron2's, which calls it for each file of ``_BASE_``.

        Raises:
            ValueError: the file has too many bases, because it is one itself, or because files with
                several bases are read over and over.
        """
        cls.files.append(filename)
        if len(cls.files) > _MAX_FILES:
            raise ValueError(f"more than {_MAX_FILES} base files (_BASE_), the last {filename!r}")
        allow_unsafe = unsafe_files_allowed() or _is_of_detectron2(filename)
        return super().load_yaml_with_base(filename, allow_unsafe)


def _is_of_detectron2(filename: str) -> bool:
    return Path(filename).resolve().is_relative_to(Path(detectron2.__file__).resolve().parent)


def _merge_opts(cfg: CfgNode, opts: list[Any]) -> None:
    if len(opts) % 2 != 0:
        raise ValueError(f"config options must be pairs of KEY VALUE, got {len(opts)}: {opts}")
    _check_keys(cfg, opts[::2], source="the command line")
    cfg.merge_from_list(opts)


def _check_keys(cfg: CfgNode, keys: Iterable[str], *, source: str) -> None:
    known = set(_walk(cfg, ""))
    for key in keys:
        if key not in known:
            # Comparing takes time, and no key is as long.
            shown = key[:_MAX_SHOWN]
            close = difflib.get_close_matches(shown, sorted(known), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{source}: config key {shown!r} does not exist{hint}")


def _walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
    """The dotted key ``A.B.C`` of every value, one by one: aliases can repeat them without end."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
