"""Requirements and package data of an installation."""

from __future__ import annotations

import ast
import functools
import re
import sys
from distutils.core import run_setup
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
MAKEFILE = (ROOT / "Makefile").read_text()
# The files that `make setup` does not install, by the Makefile's own line.
NOT_INSTALLED = {
    REQUIREMENTS / f"{name}.txt"
    for name in re.search(r"^NOT_INSTALLED := .*,(.*)\)$", MAKEFILE, re.MULTILINE)[1].split()
}


@pytest.fixture
def distribution(monkeypatch: pytest.MonkeyPatch) -> Distribution:
    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


def all_requirements(distribution: Distribution) -> list[Requirement]:
    """Requirements of the package and of all extras."""
    lists = [distribution.install_requires, *distribution.extras_require.values()]
    return [Requirement(line) for line in chain(*lists)]


def requirements(file: Path) -> list[Requirement]:
    lines = file.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_neither_detectron2_nor_setuptools_is_required(distribution: Distribution) -> None:
    names = {canonicalize_name(requirement.name) for requirement in all_requirements(distribution)}
    assert names.isdisjoint({"detectron2", "sal-detectron2", "setuptools"})


def test_requirements_have_lower_bounds_only(distribution: Distribution) -> None:
    bounds = [
        bound for requirement in all_requirements(distribution) for bound in requirement.specifier
    ]
    assert {bound.operator for bound in bounds} == {">="}


def test_extras(distribution: Distribution) -> None:
    files = {file.stem for file in REQUIREMENTS.glob("*.txt")}
    assert set(distribution.extras_require) == files - {"runtime", "venv", "constraints"}


def test_bundled_files_are_package_data(distribution: Distribution) -> None:
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    bundled = {
        str(Path(folder) / name) for _, folder, _, names in build.data_files for name in names
    }
    assert "glipv2_d2/text/bert-base-uncased/vocab.txt" in bundled
    assert "projects/GLIPv2Mini/glipv2_mini/assets/glipv2_mini.pth" in bundled
    assert "configs/glip/Base-GLIP.yaml" in bundled
    assert "configs/lazy/glip_swin_t.py" in bundled
    assert "projects/GLIPv2Mini/configs/glipv2_mini.yaml" in bundled
    for package in ("glipv2_cli", "glipv2_d2", "projects/GLIPv2Mini/glipv2_mini"):
        assert f"{package}/py.typed" in bundled


def test_both_packages_are_installed_and_the_project_is_announced(
    distribution: Distribution,
) -> None:
    assert {"glipv2_d2", "glipv2_mini", "glipv2_mini.modeling"} <= set(distribution.packages)
    assert distribution.entry_points["console_scripts"] == ["glipv2 = glipv2_cli.main:main"]
    (entry_point,) = distribution.entry_points["glipv2_d2.projects"]
    assert entry_point == "glipv2_mini = glipv2_mini:PROJECT"


def test_the_tested_versions_satisfy_every_requirement() -> None:
    constraints = REQUIREMENTS / "constraints.txt"
    tested = {canonicalize_name(r.name): r.specifier for r in requirements(constraints)}
    for file in set(REQUIREMENTS.glob("*.txt")) - {constraints} - NOT_INSTALLED:
        for requirement in requirements(file):
            (pin,) = tested[canonicalize_name(requirement.name)]
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{file.name}: {requirement}"


def imported_packages(*folders: str) -> set[str]:
    """The top-level packages that the Python files of folders of the repository import."""
    found = set()
    for path in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found


@functools.cache
def distributions_of_packages() -> dict[str, set[str]]:
    """Top-level package -> the distributions that have it, as installed here."""
    found = metadata.packages_distributions()
    return {package: set(map(canonicalize_name, names)) for package, names in found.items()}


def provided_packages(requirement: Requirement) -> set[str]:
    """The top-level packages of a requirement, as installed here."""
    name = canonicalize_name(requirement.name)
    return {p for p, distributions in distributions_of_packages().items() if name in distributions}


LIBRARY = ("glipv2_cli", "glipv2_d2", "projects/GLIPv2Mini/glipv2_mini")
SCRIPTS = ("tools", "datasets", "projects/GLIPv2Mini/tools", "projects/GLIPv2Mini/datasets")


def test_the_library_imports_every_runtime_requirement() -> None:
    imported = imported_packages(*LIBRARY)
    for requirement in requirements(REQUIREMENTS / "runtime.txt"):
        assert imported & provided_packages(requirement), requirement


def test_every_import_is_a_requirement() -> None:
    own = {"glipv2_cli", "glipv2_d2", "glipv2_mini", "detectron2"}
    own |= {path.stem for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")}
    files = set(REQUIREMENTS.glob("*.txt")) - {REQUIREMENTS / "constraints.txt"}
    required = set().union(*(provided_packages(r) for file in files for r in requirements(file)))
    imported = imported_packages(*LIBRARY, *SCRIPTS) - own - sys.stdlib_module_names
    # The extras heic, app and ray are not installed here.
    assert imported - {"pillow_heif", "gradio", "ray"} <= required
