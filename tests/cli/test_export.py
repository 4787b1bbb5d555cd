"""glipv2 export: its arguments, its errors, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.models import tiny_cfg

from glipv2_cli import main as cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg("MODEL.MASK_ON", True).dump())
    return path


def export(*arguments: str) -> int:
    return cli.main(["export", *arguments])


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_folder_is_written_and_masks_are_said_to_be_missing(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--format", "torchscript", "--classes", "cat, dog", "--size", "64x64"]
    code = export(*arguments, "--output", "out", "--config", str(config))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "not exported: masks" in printed.out and str(tmp_path / "out") in printed.out
    assert sorted(path.name for path in Path("out").iterdir()) == ["export.json", "model.pt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "torchscript"], "needs --classes"),
        (["--classes", "cat"], "ONNX takes class names at run time"),
        (["--size", "12"], "pass HEIGHTxWIDTH"),
        (["--model", "glip-x"], "unknown"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--output", "full"], "'full' exists"),
        (["--output", "full/own.txt"], "exists: choose another folder"),
        (["--precision", "bf16", "--config", "tiny.yaml"], "TEST.PRECISION is bf16"),
    ],
)
def test_an_invalid_argument_is_an_error_and_nothing_is_written(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/own.txt").write_text("own")
    assert export("--output", "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists() and not list(tmp_path.glob("*.partial"))
    assert Path("full/own.txt").read_text() == "own"
