from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from glipv2_d2.file_writing import atomic_open, dump_json


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_open(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_missing_folder_raises_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="does not exist"),
        atomic_open(tmp_path / "a" / "file"),
    ):
        pass


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("by_torch", [True, False])
@pytest.mark.parametrize("old", [b"old", None])
def test_the_error_of_a_full_disk_names_the_file_and_what_is_kept(
    tmp_path: Path, old: bytes | None, by_torch: bool
) -> None:
    path = tmp_path / "weights.pth"
    if old is not None:
        path.write_bytes(old)

    def write() -> None:
        with atomic_open(path) as file:
            if by_torch:
                torch.save({"model": torch.ones(100_000)}, file)
            else:
                file.write(bytes(200_000))

    kept = "The file that was there is kept" if old else "No part of it is kept"
    with full_disk(), pytest.raises(OSError, match=kept) as caught:
        write()
    assert caught.value.errno == errno.EFBIG
    assert f"cannot write '{path}': {os.strerror(errno.EFBIG)}" in str(caught.value)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_has_null_for_numbers_that_json_does_not_have(value: float) -> None:
    content = {"a": [1.5, (value, {"b": value})], "c": "NaN"}
    assert json.loads(dump_json(content), parse_constant=pytest.fail) == {
        "a": [1.5, [None, {"b": None}]],
        "c": "NaN",
    }
