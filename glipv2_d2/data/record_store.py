"""Records of a dataset in files that all processes map, in place of the memory of each.

A store is a folder:

| file | content |
|---|---|
| ``records.bin`` | the records as JSON, one after the other |
| ``index.bin`` | an :data:`INDEX_ENTRY` per record |
| ``store.json`` | the number of records, the checksum of the index, the metadata of the reader |

The files are read with numpy's memory maps: Arrow would hold the same bytes, and importing it costs
each process another 28 MB. JSON, unlike pickle, runs no code when it is read.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.data.common import DatasetFromList
from detectron2.structures import BoxMode

from glipv2_d2.data.record_tasks import is_text_only
from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields

RECORDS_FILE, INDEX_FILE, HEADER_FILE = "records.bin", "index.bin", "store.json"

INDEX_ENTRY = np.dtype([("end", "<i8"), ("checksum", "<u4"), ("is_wide", "?")])
"""Its end in ``records.bin``, the CRC-32 of its bytes, and :func:`is_wide`."""

# Number of index entries that are written at once.
CHUNK = 65536


def is_wide(record: Record) -> bool:
    """Whether an image is wider than it is tall; False if its size is unknown."""
    return bool(record.get(fields.WIDTH, 0) > record.get(fields.HEIGHT, 0))


class RecordStore(Sequence[Record]):
    """The records of a store, each read from the disk when it is indexed.

    Records are as they were written, with lists in place of tuples (spans of phrases stay tuples)
    and numbers in place of numpy's. A copy in another process maps the same files.

    Attributes:
        is_wide: (num_records,) bool, mapped: :func:`is_wide` of each record.
        has_text_only: whether a record has text tasks only.
        metadata: values that the reader set in the dataset's metadata.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """
        Raises:
            FileNotFoundError: there is no store.
            ValueError: its files are damaged.
        """
        self.folder = Path(folder)
        header_file = self.folder / HEADER_FILE
        if not header_file.is_file():
            raise FileNotFoundError(f"there is no record store in '{folder}'")
        try:
            header = json.loads(header_file.read_bytes())
            self._index = np.memmap(self.folder / INDEX_FILE, INDEX_ENTRY, mode="r")
            self._bytes = np.memmap(self.folder / RECORDS_FILE, np.uint8, mode="r").data
            self.dataset_name: str = header["dataset"]
            self.has_text_only: bool = header["has_text_only"]
            self.metadata: dict[str, Any] = {
                key: _from_pairs(value) for key, value in header["metadata"].items()
            }
            found = (
                len(self._index),
                len(self._bytes),
                zlib.crc32(self._index.view(np.uint8).data),
            )
            expected = tuple(header[key] for key in ("num_records", "num_bytes", "index_checksum"))
        # The files may have any content.
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the record store '{folder}' is damaged ({type(error).__name__}: {error})"
            ) from error
        if found != expected:
            raise ValueError(
                f"the record store '{folder}' is damaged: {found} records, bytes and checksum in "
                f"place of {expected}"
            )
        self.is_wide: np.ndarray = self._index["is_wide"]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        """
        Raises:
            ValueError: the bytes of the record are damaged.
        """
        # Negative indices, and the error of one out of range.
        index = range(len(self))[index]
        begin = int(self._index["end"][index - 1]) if index else 0
        encoded = bytes(self._bytes[begin : int(self._index["end"][index])])
        if zlib.crc32(encoded) != int(self._index["checksum"][index]):
            raise ValueError(
                f"record {index} of the store '{self.folder}' is damaged: delete the folder, and "
                "the next start builds it again"
            )
        return _decode(encoded) | {fields.DATASET_NAME: self.dataset_name}

    def __reduce__(self) -> tuple[type[RecordStore], tuple[str]]:
        return RecordStore, (str(self.folder),)


class StoredRecords(Sequence[Record]):
    """The records of several stores, and of lists, which are serialized, one after the other."""

    def __init__(self, parts: Iterable[Sequence[Record]]) -> None:
        parts = list(parts)
        self.is_wide = np.concatenate([are_wide(part) for part in parts])
        self.parts = [
            part if isinstance(part, RecordStore) else DatasetFromList(list(part), copy=False)
            for part in parts
        ]
        self._ends = list(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        record: Record = part[index - self._ends[number] + len(part)]
        return record


def are_wide(records: Sequence[Record]) -> np.ndarray:
    """(num_records,) bool: :func:`is_wide` of each record."""
    if isinstance(records, RecordStore | StoredRecords):
        return records.is_wide
    return np.array([is_wide(record) for record in records], dtype=bool)


class StoredCaptions(Sequence[str]):
    """The ``caption`` of each record of a store."""

    def __init__(self, store: RecordStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return str(self.store[index][fields.CAPTION])


def write_store(
    folder: Path,
    records: Iterable[Record],
    *,
    dataset_name: str,
    get_metadata: Callable[[], Mapping[str, Any]],
) -> None:
    """Write records to a folder that exists, in memory that does not depend on their number.

    Args:
        get_metadata: called after the last record; its values are of JSON's types, or dicts of
            them with any keys.

    Raises:
        ValueError: a record has a value that JSON does not have.
    """
    num_bytes = num_records = checksum = 0
    has_text_only = False
    entries = np.empty(CHUNK, INDEX_ENTRY)
    with (folder / RECORDS_FILE).open("wb") as data, (folder / INDEX_FILE).open("wb") as index:
        for num_records, record in enumerate(records, start=1):
            encoded = _encode(record)
            num_bytes += data.write(encoded)
            has_text_only = has_text_only or is_text_only(record)
            last = (num_records - 1) % CHUNK
            entries[last] = (num_bytes, zlib.crc32(encoded), is_wide(record))
            if last == CHUNK - 1:
                checksum = _append(index, entries, checksum)
        checksum = _append(index, entries[: num_records % CHUNK], checksum)
        _sync(data)
        _sync(index)
    header = {
        "dataset": dataset_name,
        "num_records": num_records,
        "num_bytes": num_bytes,
        "index_checksum": checksum,
        "has_text_only": has_text_only,
        "metadata": {key: _to_pairs(value) for key, value in get_metadata().items()},
    }
    with (folder / HEADER_FILE).open("wb") as file:
        file.write(json.dumps(header).encode())
        _sync(file)


def _append(index: IO[bytes], entries: np.ndarray, checksum: int) -> int:
    """Write entries to the index; returns the checksum of all so far."""
    encoded = entries.tobytes()
    index.write(encoded)
    return zlib.crc32(encoded, checksum)


def _sync(file: IO[bytes]) -> None:
    """The content must be on the disk before the folder gets its name."""
    file.flush()
    os.fsync(file.fileno())


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    # Of a compressed mask.
    if isinstance(value, bytes):
        return value.decode("ascii")
    raise TypeError(f"{type(value).__name__} {value!r:.80}")


# One for all records: json.dumps with these options builds one per call.
_encoder = json.JSONEncoder(separators=(",", ":"), default=_as_json, check_circular=False)


def _encode(record: Record) -> bytes:
    # The same for all records of a store.
    record = {key: value for key, value in record.items() if key != fields.DATASET_NAME}
    try:
        return _encoder.encode(record).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the record of {record.get(fields.FILE_NAME)!r} cannot be stored ({error}): use "
            "numbers, text, lists and dicts, or set DATALOADER.RECORD_STORE to False"
        ) from error


def _decode(encoded: bytes) -> Record:
    record: Record = json.loads(encoded)
    for annotation in record.get("annotations", ()):
        if "bbox_mode" in annotation:
            annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
    if fields.PHRASES in record:
        record[fields.PHRASES] = [
            [tuple(span) for span in phrase] for phrase in record[fields.PHRASES]
        ]
    return record


def _to_pairs(value: Any) -> Any:
    """A dict as pairs, because JSON has only text as keys."""
    return {"pairs": list(value.items())} if isinstance(value, dict) else value


def _from_pairs(value: Any) -> Any:
    return dict(value["pairs"]) if isinstance(value, dict) else value
