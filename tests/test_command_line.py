from __future__ import annotations

import glob
import os
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


def test_patterns_select_the_files_that_glob_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("a.png", "one/b.png", "one/two/c.jpg", "one/.d.png", ".hidden/e.png"):
        Path(name).touch()
    for pattern in ("*", "*.png", "**/*.png", "one/**", "one/*/*.jpg", "one/.*", "../*/o*/?.png"):
        for prefix in ("", f"{tmp_path}/"):
            files = {os.path.abspath(p) for p in glob.glob(prefix + pattern, recursive=True)}
            selected = {os.path.abspath(p) for p in expand_image_paths([prefix + pattern])}
            assert selected == {path for path in files if os.path.isfile(path)}, prefix + pattern


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    # Root may list everything.
    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(ValueError, match=f"{tmp_path.name}' cannot be listed: Permission denied"):
        expand_image_paths([str(tmp_path)])
