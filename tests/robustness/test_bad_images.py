"""One bad image among many: it is named with the reason, and the others are finished."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bad_images import write_bad_images, write_good_images
from helpers.fixed_predictor import FixedPredictor
from PIL import Image

import glipv2_d2
from glipv2_cli import main as cli
from glipv2_d2.images import load_image

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> Run:
    """Runs glipv2 predict on the folder, with a fixed predictor or another one."""
    monkeypatch.chdir(tmp_path)

    def run_predict(
        *arguments: object, source: object = folder, predictor: Any = FixedPredictor
    ) -> int:
        monkeypatch.setattr(glipv2_d2, "Predictor", predictor)
        command = ["predict", str(source), "--classes", "cat, dog", "--output", "out"]
        return cli.main([*command, "--save", "coco", *map(str, arguments)])

    return run_predict


def entries() -> list[dict[str, Any]]:
    lines = Path("out/predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_twenty_bad_images_are_named_and_five_good_ones_finished(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, messages = write_good_images(folder), write_bad_images(folder)
    assert len(sizes) == 5 and len(messages) == 20
    assert run("--batch-size", 4) == 1
    outputs = {f"{Path(name).stem}.jpg" for name in sizes}
    assert set(os.listdir("out/drawn")) == outputs
    # Those of the upright images.
    found = {Path(x["source"]).name: (x["height"], x["width"]) for x in entries()}
    assert found == sizes
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 5
    skipped = [line for line in capsys.readouterr().out.splitlines() if "skipped: " in line]
    assert len(skipped) == 20
    for name, message in messages.items():
        shown = repr(str(folder / name))
        (line,) = (x for x in skipped if shown in x or repr(shown)[1:-1] in x)
        assert re.search(message, line)


def test_a_second_run_predicts_none_of_them_again(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_good_images(folder)
    assert run() == run() == 0
    assert "5 images (5 of an earlier run)" in capsys.readouterr().out
    assert len(entries()) == 5


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "two\nlines.png", "%s{0}[b].png", " .png"])
def test_any_file_name_gets_an_annotated_image_and_labels(
    name: str, run: Run, folder: Path
) -> None:
    Image.new("RGB", (32, 20)).save(folder / name)
    assert run("--save", "yolo", "voc") == 0
    for part in ("drawn", "labels", "voc"):
        assert len(os.listdir(f"out/{part}")) == 1
    assert [entry["source"] for entry in entries()] == [str(folder / name)]


class FailsForBlack(FixedPredictor):
    def detect(self, image: np.ndarray, names: list[str]) -> Any:
        if image.max() == 0:
            raise RuntimeError("out of memory")
        return super().detect(image, names)


class FailsAlways(FixedPredictor):
    def detect(self, image: np.ndarray, names: list[str]) -> Any:
        raise RuntimeError("no weights")


@pytest.fixture
def three_images(folder: Path) -> list[str]:
    """Three images of one batch; the second is black."""
    for name, value in (("1.png", 9), ("2.png", 0), ("3.png", 9)):
        Image.new("L", (32, 20), value).save(folder / name)
    return ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_error_of_the_model_for_one_image_is_that_images(
    batch_size: int,
    run: Run,
    three_images: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--batch-size", batch_size, predictor=FailsForBlack) == 1
    assert sorted(os.listdir("out/drawn")) == ["1.jpg", "3.jpg"]
    assert [Path(entry["source"]).name for entry in entries()] == ["1.png", "3.png"]
    assert re.search("skipped: .*2.png.*RuntimeError: out of memory", capsys.readouterr().out)


def test_an_error_of_the_model_for_every_image_fails_the_command(
    run: Run, three_images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(predictor=FailsAlways) == 2
    assert "error: no weights" in capsys.readouterr().err
    assert not Path("out/coco.json").exists()


def test_an_annotated_image_that_cannot_be_written_keeps_its_detections(
    run: Run, three_images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/drawn/2.jpg").mkdir(parents=True)
    assert run() == 1
    assert [Path(entry["source"]).name for entry in entries()] == three_images
    assert Path("out/drawn/3.jpg").is_file()
    assert re.search(r"skipped: .*2\.png.*is predicted, but .*2\.jpg", capsys.readouterr().out)


@pytest.mark.parametrize("path", ["file", "file/inside"])
def test_an_unusable_output_is_reported_before_any_prediction(
    path: str, run: Run, three_images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert run("--output", path, predictor=FailsAlways) == 2
    error = capsys.readouterr().err
    assert f"--output '{path}'" in error and error.count("\n") == 1


def test_a_folder_without_write_permission_is_reported(
    run: Run,
    three_images: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run() == 2
    assert re.search("--output .* is not writable", capsys.readouterr().err)


def test_links_in_a_circle_do_not_repeat_images(
    run: Run, folder: Path, three_images: list[str]
) -> None:
    (folder / "one").symlink_to(folder)
    (folder / "two").symlink_to(folder)
    assert run(source=f"{folder}/**/*.png") == 0
    assert sorted(os.listdir("out/drawn")) == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_file_without_read_permission_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "secret.png").touch()

    def deny(path: str, _: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    # Root may read everything.
    monkeypatch.setattr("glipv2_d2.images.PathManager.open", deny)
    with pytest.raises(ValueError, match="secret.png' cannot be opened: Permission denied"):
        load_image(folder / "secret.png")


def test_a_path_with_a_null_byte_is_named() -> None:
    with pytest.raises(ValueError, match=r"'a\\x00b.png' cannot be opened"):
        load_image("a\0b.png")
