from __future__ import annotations

import glob
import os
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from glipv2_d2.command_line import (
    check_minimums,
    expand_image_paths,
    parse_thresholds,
    read_class_lines,
    read_class_names,
)


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


def test_class_names_may_have_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat: 0.4\ncoffee cup\nratio 1:2 : .5\n")
    assert read_class_lines(path) == [("cat", 0.4), ("coffee cup", None), ("ratio 1:2", 0.5)]
    assert read_class_names(path) == ["cat", "coffee cup", "ratio 1:2"]


@pytest.mark.parametrize("line", ["dog: high", "dog:", "dog: 1.5", "dog: 0,4", "dog: nan"])
def test_malformed_threshold_of_a_class_name_is_located(line: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text(f"cat\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2 of .*names.txt, '{line}', .*write 'cat: 0.4'"):
        read_class_lines(path)


def test_two_thresholds_of_a_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat: 0.4\ndog\ncat: 0.5\n")
    with pytest.raises(ValueError, match="names.txt has two thresholds of 'cat'"):
        read_class_lines(path)
    with pytest.raises(ValueError, match="--threshold has two values of 'cat'"):
        parse_thresholds(["cat=0.4", "cat=0.5"])


def test_thresholds_are_a_default_and_names() -> None:
    assert parse_thresholds([]) == (None, {})
    assert parse_thresholds(["cat=0.4", "0.2,a=b=1"]) == (0.2, {"cat": 0.4, "a=b": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cat=", "'cat='"),
        ("=0.4", "'=0.4'"),
        ("0.3,", "''"),
        ("cat=2", "'cat=2'"),
        ("cat", "'cat' is neither a number from 0 to 1 nor a name"),
        ("0.3, 0.4", "defaults 0.3 and 0.4"),
    ],
)
def test_malformed_threshold_is_named(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_thresholds([value])


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
