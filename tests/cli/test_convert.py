from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glipv2_cli import main as cli
from glipv2_d2.checkpoint import Layout, detect_layout, from_glip, read_checkpoint

ROOT = Path(__file__).parents[2]
GLIP_FILE = ROOT / "tests" / "assets" / "tiny_T_s0" / "model.pth"


def convert(*arguments: str) -> int:
    return cli.main(["convert", *arguments])


def test_number_of_keys_by_outcome_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(GLIP_FILE), str(tmp_path / "ours.pth"))
    printed = capsys.readouterr().out
    assert "314  loaded" in printed
    assert "14  recomputed" in printed
    assert "2  ignored: the classifier" in printed
    assert str(tmp_path / "ours.pth") in printed


def test_round_trip_preserves_the_weights(tmp_path: Path) -> None:
    ours, glip = tmp_path / "ours.pth", tmp_path / "glip.pth"
    convert(str(GLIP_FILE), str(ours))
    convert("--to-glip", str(ours), str(glip))
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
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_key_stops_the_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"rpn.head.bias0": torch.ones(1), "rpn.head.unknown": torch.ones(1)}
    torch.save(weights, tmp_path / "other.pth")
    assert convert(str(tmp_path / "other.pth"), str(tmp_path / "out.pth")) == 2
    assert "rpn.head.unknown" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_help_shows_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert("--help")
    assert "glipv2 convert --to-glip" in capsys.readouterr().out
