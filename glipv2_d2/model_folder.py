"""How a model is stored: a folder with its config and weights or delta, or one file with both.

A fine-tuned model is its config, which names base and classes (``MODEL.TUNING``), and the delta.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from safetensors import SafetensorError, safe_open

from glipv2_d2.file_writing import atomic_write
from glipv2_d2.model_zoo import ModelFiles, is_model_name, model_files

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"
DELTA_FILE = "delta.pth"
"""File name of the delta, in OUTPUT_DIR of a training with a policy."""

CONFIG_KEY = "glipv2_d2.config"
"""The config in the metadata of a safetensors file, as YAML."""

SINGLE_FILE_SUFFIX = ".safetensors"


def is_stored_model(path: str | Path) -> bool:
    """Whether ``path`` is a local folder, or written like a file with weights and config."""
    return Path(path).is_dir() or Path(path).suffix == SINGLE_FILE_SUFFIX


def portable_config(cfg: CfgNode) -> CfgNode:
    """The config without datasets, output folder and paths, which are those of this machine."""
    portable, defaults = cfg.clone(), get_cfg()
    portable.defrost()
    portable.MODEL.WEIGHTS = portable.MODEL.TUNING.DELTA = portable.MODEL.TUNING.NAME = ""
    portable.MODEL.TUNING.BASE = ""
    portable.MODEL.DEVICE, portable.OUTPUT_DIR = defaults.MODEL.DEVICE, defaults.OUTPUT_DIR
    portable.DATASETS.CUSTOM = []
    portable.DATASETS.TRAIN = portable.DATASETS.TEST = ()
    portable.DATASETS.TRAIN_REPEAT_FACTOR = []
    portable.freeze()
    return portable


def write_tuned_config(
    cfg: CfgNode, folder: Path, *, base: str, class_names: list[str], threshold: float
) -> None:
    """Write the config of a fine-tuned model, whose delta is in the folder.

    Args:
        base: the name of a model, its folder, or its file of weights.
        class_names: those of its data.
        threshold: minimum score of the boxes that are shown.
    """
    described = portable_config(cfg)
    described.defrost()
    described.MODEL.TUNING.BASE = base
    described.MODEL.TUNING.CLASS_NAMES = class_names
    described.TEST.DISPLAY_SCORE_THRESH = threshold
    atomic_write(folder / CONFIG_FILE, described.dump())


def stored_files(path: Path) -> ModelFiles:
    """The files of a model in a local folder, or of one that is one file.

    Raises:
        FileNotFoundError: the folder has no model, or the base of a fine-tuned one does not exist.
        ValueError: the config is damaged, or the base is unknown.
    """
    if not path.is_dir():
        return ModelFiles(path, path)
    folder, config = path, path / CONFIG_FILE
    if not config.is_file():
        raise FileNotFoundError(
            f"'{folder}' has no {CONFIG_FILE}: glipv2 finetune and save_pretrained write it"
        )
    base = base_of(config)
    weights = folder / (DELTA_FILE if base else WEIGHTS_FILE)
    if not weights.is_file():
        raise FileNotFoundError(f"'{folder}' has no {weights.name} beside its {CONFIG_FILE}")
    return ModelFiles(config, _base_weights(base, config) if base else weights)


def add_delta(cfg: CfgNode, path: str | Path) -> None:
    """Set base and delta of a fine-tuned model in the config that was read from its folder.

    Args:
        path: of the config.

    Raises:
        FileNotFoundError, ValueError: the base does not exist, or is unknown.
    """
    tuning = cfg.MODEL.TUNING
    if tuning.BASE and not tuning.DELTA:
        tuning.DELTA = str(Path(path).parent / DELTA_FILE)
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or str(_base_weights(tuning.BASE, Path(path)))


def read_config(path: Path) -> Any:
    """The content of a config file, or of the config in a file of weights: plain YAML.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not plain YAML, or a file of weights without a config.
    """
    try:
        content = _config_in(path) if path.suffix == SINGLE_FILE_SUFFIX else path.read_bytes()
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config file '{path}' is not plain YAML: {error}") from error


def _config_in(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"the model '{path}' does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is damaged, or no safetensors file: {error}") from error
    if CONFIG_KEY not in metadata:
        raise ValueError(
            f"'{path}' has weights, but no config: only the files of --export one_file and of "
            "save_pretrained have one; pass the config first, then the weights"
        )
    return str(metadata[CONFIG_KEY])


def base_of(config: Path) -> str:
    """The base of a fine-tuned model, ``MODEL.TUNING.BASE`` of its config; "" for others."""
    node = read_config(config)
    for part in ("MODEL", "TUNING", "BASE"):
        node = node.get(part) if isinstance(node, dict) else None
    base = node or ""
    if not isinstance(base, str):
        raise ValueError(f"'{config}': MODEL.TUNING.BASE is {base!r:.80}; it should be text")
    return base


def _base_weights(base: str, config: Path) -> Path:
    path = Path(base)
    if path.is_file():
        return path
    if is_model_name(base):
        weights = model_files(base).weights
        assert weights is not None
        return weights
    raise FileNotFoundError(
        f"the base '{base}' of the fine-tuned model '{config.parent}' does not exist: put "
        f"its file there, or correct MODEL.TUNING.BASE in {CONFIG_FILE}"
    )
