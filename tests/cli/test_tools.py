"""Subcommands that run scripts: the arguments for the model are the same in each."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from glipv2_cli import main as cli
from glipv2_cli import tools
from glipv2_cli.tools import SCRIPTS, translate


@pytest.fixture(autouse=True)
def files_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the name N has the files N.yaml and N.pth."""

    def model_files(args: argparse.Namespace) -> tuple[str | None, str | None]:
        if args.config is not None:
            return args.config, args.weights
        name = args.model or "default"
        return f"{name}.yaml", args.weights or f"{name}.pth"

    monkeypatch.setattr(tools, "_model_files", model_files)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--model m A 1", "--config-file m.yaml A 1 MODEL.WEIGHTS m.pth"),
        ("--config-file c A 1", "--config-file c A 1"),
    ],
)
def test_arguments_of_a_model_become_those_of_the_script(arguments: str, expected: str) -> None:
    assert translate(arguments.split()) == expected.split()


def test_every_command_with_a_script_is_listed_and_its_script_exists() -> None:
    assert set(SCRIPTS) | set(cli.MODULES) | {"setup-detectron2"} == set(cli.COMMANDS)
    for script in SCRIPTS.values():
        assert (tools.directory() / script.file).is_file()


def test_script_runs_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train_net.py").write_text(
        "import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n    sys.exit(3)\n"
    )
    monkeypatch.setattr(tools, "directory", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["glipv2"])
    assert cli.main(["train", "--eval-only", "A", "1"]) == 3
    assert "['--eval-only', 'A', '1']" in capsys.readouterr().out
