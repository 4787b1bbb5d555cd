"""The wheel of the tree photographs is verified before it is read."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import prepare_trees
import pytest


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "deepforest-2.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deepforest/data/x.png", b"")
    arguments = ["prepare_trees.py", "--wheel", str(wheel), "--output", str(tmp_path / "trees")]
    monkeypatch.setattr("sys.argv", arguments)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SystemExit, match=f"not the wheel of deepforest==2.1.0.*{digest}"):
        prepare_trees.main()
    assert not (tmp_path / "trees").exists()


def test_a_missing_wheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"gone\.whl does not exist"):
        prepare_trees.check_sha256(tmp_path / "gone.whl")


def test_wheels_only_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def pip(command: list[str], check: bool) -> None:
        commands.append(command)
        (tmp_path / "a.whl").touch()

    monkeypatch.setattr(subprocess, "run", pip)
    assert prepare_trees.download(tmp_path) == tmp_path / "a.whl"
    assert "--only-binary=:all:" in commands[0] and "--no-deps" in commands[0]


def test_a_failed_download_is_an_error_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], check: bool) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(SystemExit, match=r"could not download deepforest==2\.1\.0"):
        prepare_trees.download(tmp_path)
