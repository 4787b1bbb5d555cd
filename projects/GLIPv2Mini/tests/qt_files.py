"""Qt resource files for the tests."""

from __future__ import annotations

import struct
import zlib


def qt_resource_file(
    files: dict[str, bytes], *, version: int = 3, compressed: bool = False, flags: int = 0
) -> bytes:
    """A resource file in which every file of ``files`` is in a directory "images" of the root.

    Args:
        flags: added to the flags of the files.
    """
    names, contents, nodes = b"", b"", b""
    last_change = struct.pack(">Q", 1_600_000_000_000) if version >= 2 else b""

    def add_name(name: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return offset

    # The root has one child, node 1; its children are the nodes from 2 on.
    nodes += struct.pack(">IHII", 0, 2, 1, 1) + last_change
    nodes += struct.pack(">IHII", add_name("images"), 2, len(files), 2) + last_change
    for name, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        nodes += struct.pack(">IHHHI", add_name(name), compressed | flags, 0, 1, len(contents))
        nodes += last_change
        contents += struct.pack(">I", len(stored)) + stored
    header_size = 20 if version < 3 else 24
    tree = header_size
    offsets = (tree, tree + len(nodes) + len(names), tree + len(nodes))
    header = b"qres" + struct.pack(">4I", version, *offsets)
    return header.ljust(header_size, b"\0") + nodes + names + contents
