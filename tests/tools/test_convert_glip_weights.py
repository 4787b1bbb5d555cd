from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from glipv2_d2.checkpoint import Layout, detect_layout, from_glip, read_checkpoint

ROOT = Path(__file__).parents[2]
GLIP_FILE = ROOT / "tests" / "assets" / "tiny_T_s0" / "model.pth"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "convert_glip_weights.py"
    spec = importlib.util.spec_from_file_location("convert_glip_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_number_of_keys_by_outcome_is_printed(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main([str(GLIP_FILE), str(tmp_path / "ours.pth")])
    printed = capsys.readouterr().out
    assert "314  loaded" in printed
    assert "14  recomputed" in printed
    assert "2  ignored: the classifier" in printed
    assert str(tmp_path / "ours.pth") in printed


def test_round_trip_preserves_the_weights(tool: ModuleType, tmp_path: Path) -> None:
    ours, glip = tmp_path / "ours.pth", tmp_path / "glip.pth"
    tool.main([str(GLIP_FILE), str(ours)])
    tool.main(["--to-glip", str(ours), str(glip)])
    assert detect_layout(read_checkpoint(ours)["model"]) is Layout.NATIVE
    original, back = read_checkpoint(GLIP_FILE)["model"], read_checkpoint(glip)["model"]
    assert len(back) == len(from_glip(original)[0])
    assert all(torch.equal(value, original[name]) for name, value in back.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to-glip", str(GLIP_FILE), "out.pth"], "the layout 'GLIP', not of 'GLIPv2'"),
        (["missing.pth", "out.pth"], "do not exist"),
        ([str(GLIP_FILE), "no/such/folder/out.pth"], "does not exist"),
        ([str(GLIP_FILE), str(GLIP_FILE)], "is the input itself"),
    ],
)
def test_invalid_arguments_are_reported_without_a_traceback(
    tool: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_key_stops_the_conversion(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"rpn.head.bias0": torch.ones(1), "rpn.head.unknown": torch.ones(1)}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "other.pth"), str(tmp_path / "out.pth")])
    assert "rpn.head.unknown" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_help_shows_a_command(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "tools/convert_glip_weights.py" in capsys.readouterr().out
