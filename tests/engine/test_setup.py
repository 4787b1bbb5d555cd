"""Configs are loaded in order, and errors suggest the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.engine.setup import load_config
from glipv2_d2.projects import add_project_configs


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_options_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.5\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "7"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 0.5)


def test_a_file_inherits_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 5\n")
    path = write(tmp_path, "_BASE_: base.yaml\nSEED: 9\n")
    cfg = load_config(path)
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED) == (5, 9)


def test_without_a_file_the_config_has_the_defaults() -> None:
    defaults = get_cfg()
    add_glipv2_config(defaults)
    add_project_configs(defaults)
    defaults.MODEL.DEVICE = "cpu"
    assert load_config(opts=["MODEL.DEVICE", "cpu"]) == defaults


def test_the_config_is_frozen() -> None:
    assert load_config().is_frozen()


def test_an_unknown_key_in_a_file_suggests_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "MODEL:\n  FUSED_HEAD:\n    NUM_BLOKS: 2\n")
    with pytest.raises(ValueError, match=r"config\.yaml.*NUM_BLOKS.*FUSED_HEAD\.NUM_BLOCKS"):
        load_config(path)


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.BASELR.*SOLVER\.BASE_LR"):
        load_config(opts=["SOLVER.BASELR", "1"])


def test_a_value_of_the_wrong_type_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml.*SOLVER\.MAX_ITER"):
        load_config(write(tmp_path, "SOLVER:\n  MAX_ITER: soon\n"))


def test_a_key_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="pairs"):
        load_config(opts=["SOLVER.BASE_LR"])


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize("text", ["a: [1,", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_not_a_config_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(write(tmp_path, text))


def test_the_device_falls_back_to_the_cpu_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert load_config(opts=["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"
