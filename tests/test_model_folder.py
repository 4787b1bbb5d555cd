"""Folders and files of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from glipv2_d2 import Predictor, add_glipv2_config
from glipv2_d2.engine.setup import load_config
from glipv2_d2.model_folder import (
    CONFIG_FILE,
    DELTA_FILE,
    WEIGHTS_FILE,
    read_config,
    stored_files,
    write_tuned_config,
)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.OUTPUT_DIR = "/home/me/output"
    return cfg


def write(folder: Path, cfg: CfgNode, base: str) -> Path:
    folder.mkdir()
    write_tuned_config(cfg, folder, base=base, class_names=["cat"], threshold=0.4)
    (folder / DELTA_FILE).write_bytes(b"")
    return folder


def test_a_fine_tuned_folder_has_the_weights_of_its_base(tmp_path: Path, cfg: CfgNode) -> None:
    base = tmp_path / "base.pth"
    base.write_bytes(b"")
    folder = write(tmp_path / "mine", cfg, str(base))
    files = stored_files(folder)
    assert (files.config, files.weights) == (folder / CONFIG_FILE, base)
    loaded = load_config(files.config).MODEL
    assert (str(base), str(folder / DELTA_FILE)) == (loaded.WEIGHTS, loaded.TUNING.DELTA)
    assert load_config(files.config).TEST.DISPLAY_SCORE_THRESH == 0.4
    named = stored_files(write(tmp_path / "named", cfg, "glipv2-mini"))
    assert named.weights is not None and named.weights.name == "glipv2_mini.pth"


def test_a_folder_with_all_weights_needs_no_base(tmp_path: Path, cfg: CfgNode) -> None:
    folder = write(tmp_path / "mine", cfg, "")
    (folder / WEIGHTS_FILE).write_bytes(b"")
    files = stored_files(folder)
    assert files.weights == folder / WEIGHTS_FILE
    assert load_config(files.config).MODEL.TUNING.DELTA == ""


def test_the_config_has_class_names_and_no_path_of_this_machine(
    tmp_path: Path, cfg: CfgNode
) -> None:
    text = (write(tmp_path / "mine", cfg, "glipv2-mini") / CONFIG_FILE).read_text()
    assert yaml.safe_load(text)["MODEL"]["TUNING"]["CLASS_NAMES"] == ["cat"]
    assert "/home/me" not in text


def test_a_missing_base_or_delta_is_named(tmp_path: Path, cfg: CfgNode) -> None:
    folder = write(tmp_path / "mine", cfg, "/gone/base.pth")
    with pytest.raises(FileNotFoundError, match=r"the base '/gone/base.pth' .* does not exist"):
        Predictor(folder)
    with pytest.raises(ValueError, match="unknown model name 'glipv2-mnii'; did you mean"):
        Predictor(write(tmp_path / "unknown", cfg, "glipv2-mnii"))
    (folder / DELTA_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no delta\.pth"):
        Predictor(str(folder))


@pytest.mark.parametrize("content", ["MODEL: {TUNING: {BASE: [1]}}", "MODEL: [1", "- 1"])
def test_an_invalid_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"config\.yaml"):
        stored_files(tmp_path)


def test_a_file_without_a_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Predictor(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="has weights, but no config"):
        Predictor(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_config(path)
