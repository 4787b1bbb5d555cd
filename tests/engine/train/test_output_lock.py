"""A second training in an output folder is refused, until the first process ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.locked_folder import locked_by_another_process

from glipv2_d2.engine.train.output_lock import output_lock


def test_a_second_training_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path) as first:
        message = rf"another training \(process {first.process} on .*'{tmp_path}'.*OUTPUT_DIR"
        with pytest.raises(ValueError, match=message), output_lock(tmp_path):
            pass
        first.kill()
        # Its loader still runs.
        os.kill(first.loader, 0)
        with output_lock(tmp_path):
            pass


def test_other_folders_are_not_locked(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path), output_lock(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder").is_dir()


def test_a_process_can_lock_a_folder_again(tmp_path: Path) -> None:
    with output_lock(tmp_path), output_lock(tmp_path / ".." / tmp_path.name):
        pass
    with output_lock(tmp_path):
        pass


def test_training_goes_on_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with output_lock(tmp_path):
        assert "cannot be locked" in caplog.text
