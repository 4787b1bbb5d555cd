"""The packages of the composed scenes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import prepare_stamps
import pytest

from glipv2_mini.data.backgrounds import SCIKIT_IMAGE, background_photos

NAME = "mate-backgrounds"


def test_the_packages_of_all_photos_are_known() -> None:
    packages = {photo.package for photo in background_photos()}
    assert packages - {SCIKIT_IMAGE} <= prepare_stamps.PACKAGES.keys()


def test_a_downloaded_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"{NAME}_1_all.deb"
    file.write_bytes(b"")
    digest_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    monkeypatch.setitem(prepare_stamps.PACKAGES, NAME, ("1", digest_of_nothing))
    assert prepare_stamps.find_package(tmp_path, NAME) == file


def test_another_version_of_a_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}_9_all.deb").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"get mate-backgrounds 1\.26\.0-1"):
        prepare_stamps.find_package(tmp_path, NAME)


def test_a_failed_download_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(100, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit, match="--packages"):
        prepare_stamps.find_package(tmp_path, NAME)
