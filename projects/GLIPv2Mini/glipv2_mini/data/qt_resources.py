"""Files in Qt's binary resource files (.rcc), as ``rcc --binary`` writes them.

A resource file has a header, a tree of nodes, the names of the nodes and the contents of the files.
All numbers are big-endian:

    header     b"qres", version, offsets of the tree, the contents and the names (four uint32)
    node       offset of its name (uint32), flags (uint16), then for a directory the number of its
               children and the index of the first one (two uint32), for a file its country and
               language (two uint16) and the offset of its content (uint32); from version 2 on also
               the time of its last change (uint64). Node 0 is the root; it has no name.
    name       number of UTF-16 code units (uint16), hash (uint32), the code units
    content    number of bytes (uint32), the bytes; compressed with zlib they begin with the number
               of bytes after decompression (uint32)
"""

from __future__ import annotations

import struct
import zlib

MAGIC = b"qres"
VERSIONS = (1, 2, 3)

ZLIB, DIRECTORY, ZSTD = 1, 2, 4
"""The flags of a node."""


class QtResources:
    """The files of a resource file.

    Attributes:
        paths: the paths of all files, each with a slash at the beginning, in the order of the tree.
    """

    def __init__(self, content: bytes, source: str) -> None:
        """Parse the tree; contents are read by :meth:`read`.

        Args:
            content: the bytes of the resource file.
            source: its name, for error messages.

        Raises:
            ValueError: it is damaged, or not a resource file.
        """
        self._bytes, self._source = content, source
        if content[:4] != MAGIC:
            raise self._damaged(f"it begins with {content[:4]!r} instead of {MAGIC!r}")
        version, self._tree, self._contents, self._names = self._unpack(">4I", 4)
        if version not in VERSIONS:
            raise self._damaged(f"its version is {version}, supported are {VERSIONS}")
        self._node_size = 14 if version == 1 else 22
        self._files: dict[str, tuple[int, int]] = {}
        self._parse_tree()

    @property
    def paths(self) -> list[str]:
        return list(self._files)

    def find(self, end: str) -> str:
        """The only path that ends with a slash and ``end``.

        Raises:
            ValueError: there is none, or more than one.
        """
        matches = [path for path in self._files if path.endswith(f"/{end}")]
        if len(matches) != 1:
            raise ValueError(
                f"{self._source} has {len(matches)} files that end with '/{end}', not one"
            )
        return matches[0]

    def read(self, path: str) -> bytes:
        """The content of a file, decompressed.

        Args:
            path: one of ``paths``.

        Raises:
            ValueError: the content is damaged, or compressed with Zstandard.
        """
        flags, offset = self._files[path]
        start = self._contents + offset
        (size,) = self._unpack(">I", start)
        stored = self._slice(start + 4, size)
        if flags & ZSTD:
            raise ValueError(
                f"{path!r} in {self._source} is compressed with Zstandard; only zlib is supported"
            )
        return self._decompress(path, stored) if flags & ZLIB else stored

    def _decompress(self, path: str, stored: bytes) -> bytes:
        if len(stored) < 4:
            raise self._damaged(f"{path!r} has {len(stored)} compressed bytes")
        (size,) = struct.unpack(">I", stored[:4])
        decompressor = zlib.decompressobj()
        try:
            # One more byte than the file should have: a longer content is found without its bytes.
            content = decompressor.decompress(stored[4:], size + 1)
        except zlib.error as error:
            raise self._damaged(f"{path!r} cannot be decompressed: {error}") from error
        if len(content) != size or not decompressor.eof:
            raise self._damaged(f"{path!r} does not have {size} bytes")
        return content

    def _parse_tree(self) -> None:
        known = {0}
        # Node and the path of its parent; a stack, as a damaged tree may be deep.
        nodes = [(0, "")]
        while nodes:
            index, parent = nodes.pop()
            offset = self._tree + index * self._node_size
            name_offset, flags = self._unpack(">IH", offset)
            path = f"{parent}/{self._name(name_offset)}" if index else ""
            if flags & DIRECTORY:
                count, first = self._unpack(">2I", offset + 6)
                if count:
                    # The last child, before a damaged count makes a list of billions.
                    self._slice(self._tree + (first + count - 1) * self._node_size, self._node_size)
                children = range(first, first + count)
                if not known.isdisjoint(children):
                    raise self._damaged(f"a node of its tree has two parents, one is {path!r}")
                known.update(children)
                nodes += [(child, path) for child in reversed(children)]
            else:
                (content_offset,) = self._unpack(">I", offset + 10)
                self._files[path] = (flags, content_offset)

    def _name(self, offset: int) -> str:
        (length,) = self._unpack(">H", self._names + offset)
        stored = self._slice(self._names + offset + 6, 2 * length)
        try:
            return stored.decode("utf-16-be")
        except UnicodeDecodeError as error:
            raise self._damaged(f"a name is not UTF-16: {error}") from error

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, self._slice(offset, struct.calcsize(form)))

    def _slice(self, offset: int, size: int) -> bytes:
        end = offset + size
        if end > len(self._bytes):
            raise self._damaged(
                f"it has {len(self._bytes)} bytes, and bytes {offset} to {end} are needed"
            )
        return self._bytes[offset:end]

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(f"{self._source} is not a complete Qt resource file: {reason}")
