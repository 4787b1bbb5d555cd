"""Projects: found by their entry points, loaded once, and never imported by the core."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from glipv2_d2 import projects
from glipv2_d2.engine.setup import load_config
from glipv2_d2.projects import GROUP, Project, load_projects

ROOT = Path(__file__).parents[1]
calls: list[str] = []


def add_keys(cfg: CfgNode) -> None:
    cfg.MODEL.TEST_PROJECT = CfgNode({"SIZE": 3})


def fail() -> None:
    raise RuntimeError("no datasets here")


GOOD = Project("good", lambda: calls.append("registered"), add_keys)
BROKEN = Project("broken", fail, add_keys)
RECURSIVE = Project("recursive", load_config, add_keys)
Announce = Callable[[str], None]


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Announce:
    """Installs one entry point, of an attribute of this module or of another."""
    monkeypatch.setitem(sys.modules, "a_project", sys.modules[__name__])
    monkeypatch.setattr(projects, "_loaded", {})
    calls.clear()

    def install(value: str) -> None:
        entry_points = [EntryPoint("theirs", value, GROUP)]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entry_points)

    return install


def test_a_project_is_registered_once(announce: Announce) -> None:
    announce("a_project:GOOD")
    assert load_projects() == load_projects() == [GOOD]
    assert calls == ["registered"]


def test_a_project_that_builds_a_config_while_it_is_registered_is_named(announce: Announce) -> None:
    announce("a_project:RECURSIVE")
    with pytest.raises(ImportError, match="'theirs' builds a config while it is being loaded"):
        load_projects()


def test_load_config_knows_the_keys_of_a_project(announce: Announce) -> None:
    announce("a_project:GOOD")
    assert load_config(opts=["MODEL.TEST_PROJECT.SIZE", 5]).MODEL.TEST_PROJECT.SIZE == 5


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("a_project:MISSING", ImportError, "cannot be loaded: .*MISSING"),
        ("no_such_package:PROJECT", ImportError, "cannot be loaded: .*no_such_package"),
        ("a_project:GROUP", TypeError, "is a str, not a Project"),
        ("a_project:BROKEN", ImportError, "cannot be registered: no datasets here"),
    ],
)
def test_a_broken_project_is_named(
    value: str, error: type[Exception], message: str, announce: Announce
) -> None:
    announce(value)
    with pytest.raises(error, match=f"entry point 'theirs' = '{value}'.*{message}"):
        load_projects()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    paths = f"{folder}:{folder / 'projects' / 'GLIPv2Mini'}"
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of both packages, with the contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python_files = shutil.ignore_patterns("*.pth", "*.txt", "*.tsv", "__pycache__")
    for package in ("glipv2_cli", "glipv2_d2", "projects/GLIPv2Mini/glipv2_mini"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=python_files)
    return tmp_path


def test_an_import_of_the_small_model_breaks_the_contract_of_the_core(copy: Path) -> None:
    assert lint_imports(copy).returncode == 0
    module = copy / "glipv2_d2" / "modeling" / "meta_arch.py"
    module.write_text(f"from glipv2_mini import config\n{module.read_text()}")
    result = lint_imports(copy)
    assert result.returncode == 1
    assert "The core does not import glipv2_mini BROKEN" in result.stdout
