"""The predictor of these tests finds every class it is asked for, in the same box."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import demo
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.prediction import Answer, Caption, Prediction


class FindsEverything:
    """Scores fall by 0.2 per name, from 0.9. The class remembers the negatives it was given."""

    negatives: list[str] | None = None

    def __init__(self, *args, **kwargs) -> None:
        pass

    def predict(
        self,
        images,
        *,
        classes=None,
        negatives=None,
        caption=None,
        channel_order=None,
        batch_size=1,
    ):
        FindsEverything.negatives = negatives
        images = list(images)
        lists = [caption.split()] * len(images) if caption else classes
        if isinstance(lists[0], str):
            lists = [lists] * len(images)
        return [self.find(image, names) for image, names in zip(images, lists, strict=True)]

    def answer(self, images, question, *, ground, channel_order, batch_size):
        assert ground
        return [
            Answer(question, "blue", 0.75, self.told(image, f"{question} blue", ["sky", "blue"]))
            for image in images
        ]

    def caption(self, images, *, ground, channel_order, batch_size):
        assert ground
        return [
            Caption("a [blue] sky", self.told(image, "a [blue] sky", ["sky"])) for image in images
        ]

    def told(self, image: np.ndarray, text: str, names: list[str]) -> Prediction:
        spans = tuple(((text.index(name), text.index(name) + len(name)),) for name in names)
        return replace(self.find(image, names), text=text, spans=spans)

    def find(self, image: np.ndarray, names: list[str]) -> Prediction:
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 3.0, 12.0, 8.0]] * len(names)))
        instances.scores = 0.9 - 0.2 * torch.arange(len(names))
        instances.pred_classes = torch.arange(len(names))
        return Prediction(instances, names, image.shape[:2])


@pytest.fixture(autouse=True)
def finds_everything(monkeypatch):
    monkeypatch.setattr(demo, "Predictor", FindsEverything)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (32, 20)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def run(tmp_path: Path, *arguments: object) -> int:
    output = ["--config-file", "any.yaml", "--output", str(tmp_path / "out")]
    return demo.main([*output, *map(str, arguments)])


def test_a_folder_gives_annotated_pictures_a_result_file_and_tables(photos, tmp_path, capsys):
    results = tmp_path / "results" / "found.json"
    code = run(tmp_path, "--input", photos, "--classes", "red cat, dog", "--json", results)
    assert code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jpg", "b.jpg"]
    rows = json.loads(results.read_text())
    assert [(Path(row["file_name"]).name, row["category_name"]) for row in rows] == [
        ("a.jpg", "red cat"),
        ("a.jpg", "dog"),
        ("b.png", "red cat"),
        ("b.png", "dog"),
    ]
    assert rows[3]["image_id"] == 1 and rows[3]["category_id"] == 1
    assert rows[3]["bbox"] == [2, 3, 10, 5] and rows[3]["score"] == pytest.approx(0.7)
    printed = capsys.readouterr().out
    assert "red cat" in printed and str(results) in printed.replace("\n", "")


def test_detections_below_the_threshold_are_left_out(photos, tmp_path):
    results = tmp_path / "found.json"
    arguments = ("--classes", "cat, dog", "--threshold", 0.8, "--json", results)
    assert run(tmp_path, "--input", photos / "a.jpg", *arguments) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["cat"]


def test_bad_pictures_are_skipped_and_named_and_the_exit_code_says_so(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"<html>")
    inputs = ("--input", photos, photos / "gone.png", "--batch-size", 3)
    assert run(tmp_path, *inputs, "--classes", "cat") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jpg", "b.jpg"]
    printed = capsys.readouterr().out
    assert printed.count("skipped: ") == 2
    assert "broken.jpg" in printed and "gone.png" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "cat,,dog"), "name 2 of --classes 'cat,,dog' is empty"),
        (("--classes", ""), "name 1 of --classes '' is empty"),
        (("--classes-file", "no_names.txt"), "no_names.txt cannot be read"),
        (("--classes", "cat", "--threshold", "3"), "--threshold is 3.0"),
        (("--classes", "cat", "--batch-size", "0"), "--batch-size 0"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_value(photos, tmp_path, capsys, arguments, message):
    assert run(tmp_path, "--input", photos, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_input_without_pictures_is_an_error(tmp_path, capsys):
    assert run(tmp_path, "--input", tmp_path, "--classes", "cat") == 2
    assert run(tmp_path, "--input", tmp_path / "*.png", "--classes", "cat") == 2
    assert capsys.readouterr().err.count("no picture in --input") == 2


def test_inputs_may_be_files_folders_and_patterns_and_count_once(photos):
    inputs = [str(photos / "b.png"), str(photos), str(photos / "*.jpg")]
    assert [path.name for path in demo.expand_inputs(inputs)] == ["b.png", "a.jpg"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = tmp_path / "cat[1].png"
    Image.new("RGB", (4, 4)).save(path)
    assert demo.expand_inputs([str(path)]) == [path]


def test_no_two_pictures_are_written_to_one_file_nor_over_an_input(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    paths = [one / "a.jpg", one / "a.png", two / "a.jpg", one / "b.jpg"]
    names = [target.name for target in demo.output_paths(paths, one)]
    assert names == ["one_a.jpg", "one_a_2.jpg", "two_a.jpg", "b_2.jpg"]


def test_names_come_from_a_file_one_per_line(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n coffee cup \n\n", encoding="utf-8")
    assert demo.read_names(path) == ["cat", "coffee cup"]
    path.write_text("cat\n\ndog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="name 2 of .*names.txt is empty"):
        demo.read_names(path)


def test_every_picture_may_have_its_own_names(photos, tmp_path):
    paths = [photos / "a.jpg", tmp_path / "gone.png", photos / "b.png"]
    findings = demo.find_in_pictures(
        FindsEverything(),
        paths,
        output_dir=tmp_path / "out",
        console=demo.Console(file=io.StringIO()),
        threshold=0.0,
        classes=[["cat"], ["bird"], ["dog"]],
        batch_size=2,
    )
    assert [row["category_name"] for row in findings.rows] == ["cat", "dog"]
    assert len(findings.skipped) == 1


def test_names_with_brackets_are_printed_as_they_are(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos, "--classes", "[bold]cat[/nonsense]") == 0
    assert "[bold]cat[/nonsense]" in capsys.readouterr().out


def test_a_result_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        demo.write_json([{"score": object()}], path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["found.json"]


def test_a_picture_in_which_nothing_is_found_says_so(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos / "a.jpg", "--classes", "cat", "--threshold", 1) == 0
    printed = capsys.readouterr().out
    assert "0 found of cat" in printed and "score" not in printed


def test_negatives_are_asked_beside_the_classes(photos, tmp_path, capsys):
    asked = ("--input", photos / "a.jpg", "--classes", "dog")
    assert run(tmp_path, *asked, "--negatives", "wolf, red fox") == 0
    assert FindsEverything.negatives == ["wolf", "red fox"]
    assert run(tmp_path, *asked) == 0
    assert FindsEverything.negatives is None
    assert run(tmp_path, *asked, "--negatives", "wolf,,fox") == 2
    assert "name 2 of --negatives 'wolf,,fox' is empty" in capsys.readouterr().err


def test_a_file_of_thresholds_takes_the_place_of_the_one(photos, tmp_path, capsys):
    path, results = tmp_path / "thresholds.json", tmp_path / "found.json"
    path.write_text(json.dumps({"thresholds": {"dog": 0.6, "cat": 0.95}, "default": 0.1}))
    asked = ("--input", photos / "a.jpg", "--classes", "cat, dog, cow", "--json", results)
    assert run(tmp_path, *asked, "--thresholds", path) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["dog", "cow"]
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    assert run(tmp_path, *asked, "--thresholds", tmp_path / "gone.json") == 2


def test_a_question_is_answered_for_every_picture(photos, tmp_path, capsys):
    results = tmp_path / "said.json"
    assert run(tmp_path, "--input", photos, "--question", "is the sky red?", "--json", results) == 0
    assert capsys.readouterr().out.count("is the sky red? blue (75%)") == 2
    first, second = json.loads(results.read_text())
    assert first["answer"] == second["answer"] == "blue"
    assert [row["category_name"] for row in first["detections"]] == ["sky", "blue"]
    assert Path(first["file_name"]).name == "a.jpg"
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.height > 400, "the words stand below the picture"


def test_pictures_are_described(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos, "--describe") == 0
    printed = capsys.readouterr().out
    assert printed.count("a [blue] sky") == 2
    assert "2 detections of at least" in printed
