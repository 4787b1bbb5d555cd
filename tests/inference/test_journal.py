from __future__ import annotations

from pathlib import Path

import pytest

from glipv2_d2.inference.journal import Journal

SETTINGS = {"model": "mini", "classes": ["cat"]}


def write_two(path: Path) -> None:
    journal = Journal(path, SETTINGS)
    journal.append("a.jpg", None, {"n": 1})
    journal.append("clip.mp4", 0, {"n": 2})
    journal.close()


def test_second_run_continues_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out" / "journal"
    write_two(path)
    journal = Journal(path, SETTINGS)
    assert journal.done == {("a.jpg", None), ("clip.mp4", 0)}
    journal.append("clip.mp4", 1, {"n": 3})
    assert [entry["n"] for entry in journal.entries()] == [1, 2, 3]


def test_line_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_two(path)
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(path, SETTINGS)
    assert journal.done == {("a.jpg", None)}
    journal.append("b.jpg", None, {"n": 4})
    assert [entry["n"] for entry in journal.entries()] == [1, 4]


def test_process_that_was_killed_at_once_leaves_nothing_to_continue(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"sett')
    journal = Journal(path, SETTINGS)
    journal.append("a.jpg", None, {"n": 1})
    assert [entry["n"] for entry in journal.entries()] == [1]


def test_other_settings_are_rejected_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_two(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"classes \['cat'\], not \['dog'\].*--overwrite"):
        Journal(path, SETTINGS | {"classes": ["dog"]})
    assert path.read_bytes() == before


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    write_two(tmp_path / "journal")
    assert Journal(tmp_path / "journal", {"model": "other"}, overwrite=True).done == set()


@pytest.mark.parametrize("content", [b"[1]\n", b"not JSON\n", b'{"settings": 3}\n'])
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--overwrite"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_entries_are_sorted_as_the_sources_after_those_of_other_sources(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", SETTINGS)
    for source, number in (("c", None), ("v", 0), ("other", None), ("v", 1), ("a", None)):
        journal.append(source, number, {})
    journal.close()
    journal.sort(["a", "v", "missing", "c"])
    expected = [("other", None), ("a", None), ("v", 0), ("v", 1), ("c", None)]
    assert [(entry["source"], entry["frame"]) for entry in journal.entries()] == expected
    journal.sort(["c", "a"])
    assert [entry["source"] for entry in journal.entries()] == ["other", "v", "v", "c", "a"]
    continued = Journal(tmp_path / "journal", SETTINGS)
    assert continued.done == set(expected)
