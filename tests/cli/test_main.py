from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glipv2_cli import main as cli

# No module of these names can be imported.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run_without(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import the packages ``blocked``."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_help_lists_commands_and_exit_codes_without_the_library() -> None:
    heavy = {"torch", "detectron2", "glipv2_d2", "numpy", "transformers"}
    code = "from glipv2_cli.main import main; sys.exit(main(['--help']))"
    result = run_without(heavy, code)
    assert result.returncode == 0, result.stderr
    assert "setup-detectron2" in result.stdout and "exit codes" in result.stdout


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["setup-detectron"]) == cli.FAILED
    assert "did you mean setup-detectron2?" in capsys.readouterr().err


def test_no_command_is_a_failure_that_shows_the_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == cli.FAILED
    assert "usage: glipv2 COMMAND" in capsys.readouterr().out


def test_the_library_without_detectron2_names_the_command_that_installs_it() -> None:
    result = run_without({"detectron2"}, "import glipv2_d2")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("install it with: glipv2 setup-detectron2")


def test_a_missing_package_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_name: str, _argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'x'", name="a_package_that_is_missing.part")

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["predict"]) == cli.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install a_package_that_is_missing" in error


def test_an_unexpected_error_is_a_failure_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_name: str, _argv: list[str]) -> int:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["predict"]) == cli.FAILED
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("error: out of memory\n")


@pytest.mark.parametrize("command", [*cli.MODULES, "setup-detectron2"])
def test_every_help_has_an_example_and_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["glipv2"])
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"\n  glipv2 {command}" in printed and "exit codes:\n  0  " in printed


@pytest.mark.parametrize(
    "command",
    [
        "predict a.jpg",
        "label --images a --classes cat --output out",
        "evaluate",
        "check-names absent --input a --classes cat",
        "benchmark",
    ],
)
def test_every_command_that_runs_a_model_selects_it_by_the_same_arguments(command: str) -> None:
    name, *required = command.split()
    parser = importlib.import_module(f"glipv2_cli.{cli.MODULES[name]}").get_parser()
    model = ["--model", "glip-t", "--weights", "w", "--device", "cpu", "--precision", "bf16"]
    args = parser.parse_args([*required, *model, "--opts", "A", "1"])
    found = (args.model, args.weights, args.device, args.precision, args.opts)
    assert found == ("glip-t", "w", "cpu", "bf16", ["A", "1"])
    assert parser.parse_args(required).model == "glipv2-mini"


def test_commands_draw_without_the_backend_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another environment, which this one may lack."""
    monkeypatch.setenv("MPLBACKEND", "module://not_installed.backend")
    assert cli.main(["convert", "missing.pth", "out.pth"]) == cli.FAILED
    assert os.environ["MPLBACKEND"] == "agg"
