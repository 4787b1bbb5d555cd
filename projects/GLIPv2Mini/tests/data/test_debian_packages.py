"""Files of packages, with a stand-in for dpkg-deb: its packages are tar files."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from glipv2_mini.data.debian_packages import read_package

FILES = {"usr/share/a.jpg": b"first", "usr/share/b.jpg": b"second" * 5000, "usr/share/c.jpg": b"3"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "dpkg-deb"
    program.write_text('#!/bin/sh\nexec cat "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "photos_1_all.deb"
    with tarfile.open(path, "w") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_only_the_requested_files_are_returned(package: Path) -> None:
    found = read_package(package, {"usr/share/b.jpg", "usr/share/missing.jpg"})
    assert found == {"usr/share/b.jpg": FILES["usr/share/b.jpg"]}
    assert read_package(package, FILES.keys()) == FILES


@pytest.mark.parametrize("size", [0, 2000])
def test_a_damaged_package_is_named(package: Path, size: int) -> None:
    package.write_bytes(package.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"photos_1_all\.deb is not a complete Debian package"):
        read_package(package, {"usr/share/c.jpg"})


def test_a_missing_program_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install Debian's package dpkg"):
        read_package(package, FILES.keys())
