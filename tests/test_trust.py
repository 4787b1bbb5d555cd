"""Which modules a config may import, and the switch for unsafe files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glipv2_d2 import trust
from glipv2_d2.text.answers import load_answers
from glipv2_d2.text.model_files import resolve_model
from glipv2_d2.trust import import_package


@pytest.mark.parametrize("name", ["planted", "antigravity", "planted.inner", "", "../planted"])
def test_a_module_that_is_not_installed_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "inner").mkdir()
    for path in (folder, folder / "inner"):
        (path / "__init__.py").write_text("raise SystemExit('code of the folder ran')")
    (folder / "answers.txt").write_text("yes\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no installed distribution"):
        import_package(name)
    with pytest.raises(ValueError, match="needs the Python package"):
        resolve_model(f"package:{name}")
    if name != "planted":
        with pytest.raises((ModuleNotFoundError, FileNotFoundError)):
            load_answers(f"package:{name}/answers.txt")


def test_answers_are_read_without_importing_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "__init__.py").write_text("raise SystemExit('code ran')")
    (tmp_path / "listed" / "answers.txt").write_text("yes\nno\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_answers("package:listed/answers.txt") == ["yes", "no"]


def test_an_installed_package_is_imported() -> None:
    assert import_package("yaml").__name__ == "yaml"


def test_a_folder_with_the_name_of_an_installed_package_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tabulate").mkdir()
    (tmp_path / "tabulate" / "__init__.py").write_text("raise SystemExit('code of the folder ran')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tabulate", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no installed distribution"):
        import_package("tabulate")


def test_the_list_of_all_distributions_is_not_read_for_a_package_in_site_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trust, "_installed_packages", lambda: pytest.fail("read"))
    monkeypatch.delitem(sys.modules, "yaml", raising=False)
    assert import_package("yaml").__name__ == "yaml"
