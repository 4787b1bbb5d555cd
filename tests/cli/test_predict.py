"""glipv2 predict with a predictor without a model."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from helpers.fixed_predictor import FixedPredictor
from PIL import Image
from pycocotools.coco import COCO

import glipv2_d2.predictor
from glipv2_cli import main as cli
from glipv2_d2.inference.media import read_frames


@pytest.fixture(autouse=True)
def fixed_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glipv2_d2, "Predictor", FixedPredictor)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory has the folder photos/ with two images and a subfolder with one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/a.jpg"):
        Image.new("RGB", (32, 20)).save(tmp_path / "photos" / name)
    return tmp_path


def predict(*arguments: str) -> int:
    return cli.main(["predict", *arguments])


def entries(folder: str = "output/predict") -> list[dict[str, Any]]:
    lines = Path(folder, "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_folder_gives_a_journal_drawn_images_and_a_summary(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("photos", "--classes", "cat, dog", "--threshold", "0.8") == 0
    assert [entry["source"] for entry in entries()] == ["photos/a.jpg", "photos/b.png"]
    assert {path.name for path in Path("output/predict/drawn").iterdir()} == {"a.jpg", "b.jpg"}
    printed = capsys.readouterr().out
    assert "2 images, 2 detections" in printed and "2  cat" in printed and "log.txt" in printed


def test_all_formats_have_every_image(photos: Path) -> None:
    formats = ("coco", "yolo", "voc", "csv", "label-studio")
    arguments = ("photos", "--recursive", "--classes", "cat, dog", "--save", *formats)
    assert predict(*arguments) == 0
    output = Path("output/predict")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(output / "coco.json"))
    assert [image["file_name"] for image in coco.dataset["images"]] == [
        "photos/a.jpg",
        "photos/b.png",
        "photos/sub/a.jpg",
    ]
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {1: "cat", 2: "dog"}
    assert [a["category_id"] for a in coco.dataset["annotations"]] == [1, 2] * 3
    stems = {"photos_a", "b", "sub_a"}
    assert {path.stem for path in (output / "labels").iterdir()} == stems
    assert {path.stem for path in (output / "voc").iterdir()} == stems
    label = (output / "labels" / "b.txt").read_text().split()
    assert label[:5] == ["0", "0.218750", "0.275000", "0.312500", "0.250000"]
    root = ElementTree.parse(output / "voc" / "b.xml").getroot()
    assert [item.text for item in root.iter("name")] == ["cat", "dog"]
    with (output / "detections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["cat", "dog"] * 3
    assert rows[0]["image"] == "photos/a.jpg" and rows[0]["width"] == "10.00"
    tasks = json.loads((output / "label_studio.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=photos/a.jpg"


def write_ids(path: Path, names: list[str]) -> None:
    content = {
        "images": [
            {"id": 70, "file_name": "sub/a.jpg", "width": 32, "height": 20},
            {"id": 71, "file_name": "b.png", "width": 32, "height": 20},
        ],
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [],
    }
    path.write_text(json.dumps(content))


def test_ids_and_class_names_are_those_of_the_annotation_file(photos: Path) -> None:
    write_ids(Path("truth.json"), ["cat", "dog"])
    inputs = ("photos/sub/a.jpg", "photos/b.png")
    assert predict(*inputs, "--ids-from", "truth.json", "--save", "coco") == 0
    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO("truth.json").loadRes("output/predict/coco_results.json")
    found = [(a["image_id"], a["category_id"]) for a in results.dataset["annotations"]]
    assert found == [(70, 10), (70, 20), (71, 10), (71, 20)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos/a.jpg", "--classes", "cat"), "no image 'a.jpg'"),
        (("photos/b.png", "--classes", "cats"), "no class 'cats'; did you mean 'cat'"),
    ],
)
def test_what_has_no_id_is_an_error_before_the_run(
    photos: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ids(Path("truth.json"), ["cat", "dog"])
    assert predict(*arguments, "--ids-from", "truth.json", "--save", "coco") == 2
    assert message in capsys.readouterr().err
    assert not Path("output").exists()


def test_second_run_predicts_only_what_is_missing(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("photos/a.jpg", "--classes", "cat") == 0
    seen: list[int] = []
    detect = FixedPredictor.predict

    def counting(self: FixedPredictor, images: Any, **options: Any) -> Any:
        images = list(images)
        seen.append(len(images))
        return detect(self, images, **options)

    monkeypatch.setattr(FixedPredictor, "predict", counting)
    assert predict("photos", "--classes", "cat", "--save", "csv") == 0
    assert seen == [1]
    assert "2 images (1 of an earlier run), 2 detections" in capsys.readouterr().out
    assert predict("photos", "--classes", "dog") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_ctrl_c_writes_what_is_done(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detect = FixedPredictor.predict
    calls: list[int] = []

    def interrupted(self: FixedPredictor, images: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detect(self, images, **options)

    monkeypatch.setattr(FixedPredictor, "predict", interrupted)
    assert predict("photos", "--classes", "cat", "--save", "csv") == 1
    assert "the same command continues" in capsys.readouterr().out
    assert Path("output/predict/detections.csv").read_text().count("a.jpg") == 1
    assert predict("photos", "--classes", "cat", "--save", "csv") == 0
    assert len(entries()) == 2


def write_clip(path: str) -> None:
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for _ in range(4):
        writer.write(np.zeros((32, 48, 3), dtype=np.uint8))
    writer.release()


def test_video_has_an_entry_per_frame_and_continues_at_one(photos: Path) -> None:
    write_clip("clip.avi")
    arguments = ("clip.avi", "--classes", "cat", "--save", "yolo")
    assert predict(*arguments, "--max-frames", "2") == 0
    assert predict(*arguments) == 0
    assert [entry["frame"] for entry in entries()] == [0, 1, 2, 3]
    output = Path("output/predict")
    assert len(list(read_frames(str(output / "drawn" / "clip.mp4")))) == 4
    assert (output / "labels" / "clip_000003.txt").is_file()


def test_unreadable_inputs_are_skipped_and_listed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/broken.mp4").write_bytes(b"<html>")
    assert predict("photos", "missing.jpg", "--classes", "cat") == 1
    printed = capsys.readouterr().out
    assert "skipped: " in printed and "broken.mp4" in printed and "missing.jpg" in printed
    assert len(entries()) == 2


def test_questions_and_captions_are_printed_and_in_the_csv(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ("--question", "what colour is the sky?", "--save", "csv", "--output", "q")
    assert predict("photos/a.jpg", *question) == 0
    assert "blue" in Path("q/detections.csv").read_text()
    assert "photos/a.jpg: what colour is the sky? blue (75%)" in capsys.readouterr().out
    assert entries("q")[0]["question"] == "what colour is the sky?"
    assert predict("photos/a.jpg", "--describe", "--save", "csv", "--output", "c") == 0
    assert "a [blue] sky" in Path("c/detections.csv").read_text()
    assert "photos/a.jpg: a [blue] sky" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "what should be predicted"),
        (("--classes", "cat", "--threshold", "2"), "--threshold '2' is neither"),
        (("--classes", "cat", "--tiles", "0"), "--tiles is 0"),
        (("--classes", "cat", "--ids-from", "x.json"), "--save coco"),
        (("--classes", "cat,,dog"), "name 2"),
    ],
)
def test_invalid_arguments_are_one_line(
    photos: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("photos", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
