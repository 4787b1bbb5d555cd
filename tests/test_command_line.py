from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from glipv2_d2.command_line import check_minimums, expand_image_paths, read_class_names


def test_inputs_may_be_files_folders_and_patterns_and_are_returned_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (32, 20)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    inputs = [str(tmp_path / "b.png"), str(tmp_path), str(tmp_path / "*.jpg")]
    assert [path.name for path in expand_image_paths(inputs)] == ["b.png", "a.jpg"]


def test_existing_file_takes_precedence_over_glob_pattern(tmp_path: Path) -> None:
    path = tmp_path / "cat[1].png"
    Image.new("RGB", (4, 4)).save(path)
    assert expand_image_paths([str(path)]) == [path]


def test_class_names_file_has_one_name_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\n coffee cup \n\n", encoding="utf-8")
    assert read_class_names(path) == ["cat", "coffee cup"]
    path.write_text("cat\n\ndog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="name 2 of .*names.txt is empty"):
        read_class_names(path)


def test_too_small_argument_is_rejected_with_its_option() -> None:
    args = Namespace(batch_size=0, threads=None)
    check_minimums(args, {"threads": 1})
    with pytest.raises(ValueError, match="--batch-size is 0; it must be at least 1"):
        check_minimums(args, {"threads": 1, "batch_size": 1})
