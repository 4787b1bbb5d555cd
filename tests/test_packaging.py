"""Requirements and package data of an installation."""

from __future__ import annotations

from distutils.core import run_setup
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"


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


def test_both_packages_are_installed_and_the_project_is_announced(
    distribution: Distribution,
) -> None:
    assert {"glipv2_d2", "glipv2_mini", "glipv2_mini.modeling"} <= set(distribution.packages)
    (entry_point,) = distribution.entry_points["glipv2_d2.projects"]
    assert entry_point == "glipv2_mini = glipv2_mini:PROJECT"


def test_the_tested_versions_satisfy_every_requirement() -> None:
    constraints = REQUIREMENTS / "constraints.txt"
    tested = {canonicalize_name(r.name): r.specifier for r in requirements(constraints)}
    for file in set(REQUIREMENTS.glob("*.txt")) - {constraints}:
        for requirement in requirements(file):
            (pin,) = tested[canonicalize_name(requirement.name)]
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{file.name}: {requirement}"
