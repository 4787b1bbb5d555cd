"""Addresses of fsspec, in its memory file system."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import fsspec
import pytest

from glipv2_d2.inference.media import expand_sources, read_frames
from glipv2_d2.remote_files import list_remote, open_remote

SUFFIXES = {".jpg", ".png"}


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    for name in ("a.jpg", "b.PNG", "notes.txt", "sub/c.jpg", "x::memory:/y.jpg"):
        memory.pipe(f"/bucket/{name}", b"content")
    yield
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "recursive", "names"),
    [
        ("memory://bucket", False, ["a.jpg", "b.PNG"]),
        ("memory://bucket/", True, ["a.jpg", "b.PNG", "sub/c.jpg"]),
        ("memory://bucket/**/*.jpg", False, ["a.jpg", "sub/c.jpg"]),
        ("memory://bucket/notes.txt", False, ["notes.txt"]),
    ],
)
def test_folders_patterns_and_files_are_listed(
    address: str, recursive: bool, names: list[str]
) -> None:
    found = list_remote(address, SUFFIXES, recursive=recursive)
    assert [name.replace("memory:///", "memory://") for name in found] == [
        f"memory://bucket/{name}" for name in names
    ]


def test_a_file_is_read() -> None:
    with open_remote("memory://bucket/a.jpg") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none.jpg", "'memory://bucket/none.jpg' does not exist"),
        ("simplecache::memory://bucket/a.jpg", "chained addresses"),
        ("nothing://bucket/a.jpg", "cannot be opened: .*nothing"),
    ],
)
def test_what_cannot_be_read_is_named(address: str, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_remote(address)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ValueError, match=r"pip install 'glipv2_d2\[remote\]'"):
        open_remote("s3://bucket/a.jpg")


def test_images_are_sources_and_videos_are_copied_first() -> None:
    assert len(expand_sources(["memory://bucket"], recursive=True)) == 3
    with pytest.raises(ValueError, match=r"'memory://bucket/a\.jpg' is not a readable image"):
        list(read_frames("memory://bucket/a.jpg"))
    with pytest.raises(ValueError, match="copy it to this machine"):
        list(read_frames("memory://bucket/clip.mp4"))
