"""A file of predictions that is written as they are made, from which a second run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from glipv2_d2.file_writing import atomic_open

Key = tuple[str, int | None]
"""A source and, in a video, the number of the frame."""

_NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError)


class Journal:
    """JSON lines: the settings of the run, then one entry per image or frame.

    Attributes:
        path: the file.
        done: the keys of its entries.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open the file, or continue an existing one of the same settings.

        A last line that a killed process did not finish is removed.

        Raises:
            ValueError: the file was made with other settings, or is not a journal.
        """
        self.path = path
        self.done: set[Key] = set()
        # Of the entries, in the order of writing.
        self._sources: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite or not path.exists() or not self._continue(settings):
            self._file: IO[bytes] = path.open("wb")
            self._write({"settings": dict(settings)})
        else:
            self._file = path.open("ab")

    def append(self, source: str, number: int | None, entry: Mapping[str, Any]) -> None:
        self._write({"source": source, "frame": number, **entry})
        self._add(source, number)

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries so far, with ``source`` and ``frame``, in the order of the file."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        self._file.close()

    def sort(self, sources: Sequence[str]) -> None:
        """Order the entries of the closed file as ``sources``, after those of other sources.

        Entries of one source keep their order. So an interrupted run ends as one that is not, and
        one on a cluster as one in this process.
        """
        ranks = {source: rank for rank, source in enumerate(sources)}
        keys = [ranks.get(source, -1) for source in self._sources]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if order == list(range(len(keys))):
            return
        with self.path.open("rb") as file, atomic_open(self.path) as ordered:
            settings = file.readline()
            ordered.write(settings)
            starts = [len(settings)]
            for _ in keys:
                starts.append(starts[-1] + len(file.readline()))
            for number in order:
                file.seek(starts[number])
                ordered.write(file.readline())
        self._sources = [self._sources[number] for number in order]

    def _add(self, source: str, number: int | None) -> None:
        self.done.add((source, number))
        self._sources.append(source)

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, ensure_ascii=False)
        # Bytes of a file name that are not UTF-8 are written as JSON escapes, which can be read.
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        # A killed process loses nothing; only a crash of the machine may.
        self._file.flush()

    def _continue(self, settings: Mapping[str, Any]) -> bool:
        """Read the keys of the file and cut an unfinished line; False if it has no settings yet."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                try:
                    content = json.loads(line)
                    if number == 0:
                        self._check(content["settings"], settings)
                    else:
                        self._add(content["source"], content["frame"])
                except (AttributeError, KeyError, TypeError, *_NOT_JSON) as error:
                    raise ValueError(
                        f"line {number + 1} of {self.path} is not one of a journal ({error!r}); "
                        "choose another output folder, or --overwrite"
                    ) from error
                end += len(line)
        os.truncate(self.path, end)
        return end > 0

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        plain = json.loads(json.dumps(dict(new), ensure_ascii=False))
        for key in plain.keys() | old.keys():
            if old.get(key) != plain.get(key):
                raise ValueError(
                    f"{self.path} is of a run with {key} {old.get(key)!r}, not {plain.get(key)!r}: "
                    "choose another output folder, or --overwrite"
                )
