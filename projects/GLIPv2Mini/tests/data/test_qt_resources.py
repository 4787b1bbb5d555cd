"""Qt resource files, built in the test."""

from __future__ import annotations

import struct

import pytest
from qt_files import qt_resource_file

from glipv2_mini.data.qt_resources import QtResources

FILES = {"cow.webp": b"moo " * 100, "ça.txt": b"short"}
TREE = 24
NODE = 22


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_paths_and_contents_are_read(version: int, compressed: bool) -> None:
    resources = QtResources(
        qt_resource_file(FILES, version=version, compressed=compressed), "animals.rcc"
    )
    assert resources.paths == ["/images/cow.webp", "/images/ça.txt"]
    contents = {path.rpartition("/")[2]: resources.read(path) for path in resources.paths}
    assert contents == FILES


def test_a_file_is_found_by_the_end_of_its_path() -> None:
    resources = QtResources(qt_resource_file(FILES), "animals.rcc")
    assert resources.find("images/cow.webp") == resources.find("cow.webp") == "/images/cow.webp"
    with pytest.raises(ValueError, match=r"animals\.rcc has 0 files that end with '/w\.webp'"):
        resources.find("w.webp")


@pytest.mark.parametrize("compressed", [False, True])
def test_every_shortened_file_is_refused(compressed: bool) -> None:
    content = qt_resource_file(FILES, compressed=compressed)
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"animals\.rcc is not a complete Qt resource file"):
            read_all(content[:size])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"PK\3\4", "begins with"),
        (4, struct.pack(">I", 9), "its version is 9"),
        (TREE + 6, struct.pack(">II", 2**32 - 1, 1), "bytes .* are needed"),
        # The directory is its own child.
        (TREE + NODE + 6, struct.pack(">II", 2, 1), "two parents"),
        (TREE + 2 * NODE, struct.pack(">I", 2**31), "bytes .* are needed"),
        (TREE + 2 * NODE + 10, struct.pack(">I", 2**31), "bytes .* are needed"),
    ],
)
def test_a_damaged_field_is_named(offset: int, value: bytes, message: str) -> None:
    content = bytearray(qt_resource_file(FILES))
    content[offset : offset + len(value)] = value
    with pytest.raises(ValueError, match=message):
        read_all(bytes(content))


def test_a_content_of_another_size_is_refused() -> None:
    content = qt_resource_file({"cow.webp": b"moo " * 100}, compressed=True)
    for size in (399, 401, 2**32 - 1):
        changed = content.replace(struct.pack(">I", 400), struct.pack(">I", size))
        with pytest.raises(ValueError, match=f"does not have {size} bytes"):
            read_all(changed)


def test_damaged_compressed_data_is_refused() -> None:
    content = qt_resource_file({"cow.webp": b"moo " * 100}, compressed=True)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read_all(content.replace(b"\x78\x9c", b"\x00\x00"))


def test_zstandard_is_refused_when_the_file_is_read() -> None:
    resources = QtResources(qt_resource_file(FILES, flags=4), "animals.rcc")
    with pytest.raises(ValueError, match="Zstandard"):
        resources.read("/images/cow.webp")


def read_all(content: bytes) -> None:
    resources = QtResources(content, "animals.rcc")
    for path in resources.paths:
        resources.read(path)
