from __future__ import annotations

import json
import os
from pathlib import Path

import demo
import pytest
from helpers.fixed_predictor import FixedPredictor
from PIL import Image


@pytest.fixture(autouse=True)
def fixed_predictor(monkeypatch):
    monkeypatch.setattr(demo, "Predictor", FixedPredictor)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two images and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (32, 20)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(tmp_path: Path, *arguments: object) -> int:
    output = ["--config-file", "any.yaml", "--output", str(tmp_path / "out")]
    return demo.main([*output, *map(str, arguments)])


def test_folder_gives_annotated_images_result_file_and_tables(photos, tmp_path, capsys):
    results = tmp_path / "results" / "detections.json"
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


def test_detections_below_the_threshold_are_dropped(photos, tmp_path):
    results = tmp_path / "detections.json"
    arguments = ("--classes", "cat, dog", "--threshold", 0.8, "--json", results)
    assert run(tmp_path, "--input", photos / "a.jpg", *arguments) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["cat"]


def test_unreadable_images_are_skipped_and_set_the_exit_code(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"<html>")
    inputs = ("--input", photos, photos / "missing.png", "--batch-size", 3)
    assert run(tmp_path, *inputs, "--classes", "cat") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jpg", "b.jpg"]
    printed = capsys.readouterr().out
    assert printed.count("skipped: ") == 2
    assert "broken.jpg" in printed and "missing.png" in printed


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
def test_invalid_arguments_are_reported_in_one_line(photos, tmp_path, capsys, arguments, message):
    assert run(tmp_path, "--input", photos, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_input_without_images_is_an_error(tmp_path, capsys):
    assert run(tmp_path, "--input", tmp_path, "--classes", "cat") == 2
    assert run(tmp_path, "--input", tmp_path / "*.png", "--classes", "cat") == 2
    assert capsys.readouterr().err.count("no image in --input") == 2


def test_names_with_brackets_are_printed_unchanged(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos, "--classes", "[bold]cat[/nonsense]") == 0
    assert "[bold]cat[/nonsense]" in capsys.readouterr().out


def test_image_without_detections_has_no_table(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos / "a.jpg", "--classes", "cat", "--threshold", 1) == 0
    printed = capsys.readouterr().out
    assert "0 found of cat" in printed and "score" not in printed


def test_negatives_are_passed_to_the_predictor(photos, tmp_path, capsys):
    arguments = ("--input", photos / "a.jpg", "--classes", "dog")
    assert run(tmp_path, *arguments, "--negatives", "wolf, red fox") == 0
    assert FixedPredictor.negatives == ["wolf", "red fox"]
    assert run(tmp_path, *arguments) == 0
    assert FixedPredictor.negatives is None
    assert run(tmp_path, *arguments, "--negatives", "wolf,,fox") == 2
    assert "name 2 of --negatives 'wolf,,fox' is empty" in capsys.readouterr().err


def test_thresholds_file_overrides_the_threshold(photos, tmp_path, capsys):
    path, results = tmp_path / "thresholds.json", tmp_path / "detections.json"
    path.write_text(json.dumps({"thresholds": {"dog": 0.6, "cat": 0.95}, "default": 0.1}))
    arguments = ("--input", photos / "a.jpg", "--classes", "cat, dog, cow", "--json", results)
    assert run(tmp_path, *arguments, "--thresholds", path) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["dog", "cow"]
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    assert run(tmp_path, *arguments, "--thresholds", tmp_path / "missing.json") == 2


def test_one_name_per_box_keeps_the_best_name_above_its_threshold(photos, tmp_path):
    path, results = tmp_path / "thresholds.json", tmp_path / "detections.json"
    path.write_text(json.dumps({"thresholds": {"cat": 0.95}, "default": 0.1}))
    arguments = ("--classes", "cat, dog, cow", "--one-name-per-box", "--json", results)
    assert run(tmp_path, "--input", photos / "a.jpg", *arguments) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["cat"]
    assert run(tmp_path, "--input", photos / "a.jpg", *arguments, "--thresholds", path) == 0
    assert [row["category_name"] for row in json.loads(results.read_text())] == ["dog"]


def test_question_is_answered_for_every_image(photos, tmp_path, capsys):
    results = tmp_path / "answers.json"
    arguments = ("--question", "is the sky red?", "--json", results)
    assert run(tmp_path, "--input", photos, *arguments) == 0
    assert capsys.readouterr().out.count("is the sky red? blue (75%)") == 2
    first, second = json.loads(results.read_text())
    assert first["answer"] == second["answer"] == "blue"
    assert [row["category_name"] for row in first["detections"]] == ["sky", "blue"]
    assert Path(first["file_name"]).name == "a.jpg"
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.height > 400, "the text is below the image"


def test_captions_are_generated(photos, tmp_path, capsys):
    assert run(tmp_path, "--input", photos, "--describe") == 0
    printed = capsys.readouterr().out
    assert printed.count("a [blue] sky") == 2
    assert "2 detections of at least" in printed
