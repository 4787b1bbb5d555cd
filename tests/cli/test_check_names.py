"""The score of a name is the brightness of the image plus the length of the name / 100, in one test
plus its index / 100."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.models import tiny_cfg
from PIL import Image

import glipv2_d2
from glipv2_cli import main as cli
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.predictor import Prediction


class KnownScoresPredictor:
    """Detects every name in the left half of every image."""

    depends_on_order = False
    opts: list[str] = []  # noqa: RUF012 - of the last instance

    def __init__(self, _config: str, _weights: None, *, device: None, opts: list[str]) -> None:
        KnownScoresPredictor.opts = opts
        self.cfg = tiny_cfg()

    def class_scores(self, images, *, classes, channel_order):
        assert channel_order == "RGB"
        offsets = np.arange(len(classes)) * 0.01 * self.depends_on_order
        lengths = np.array([len(name) for name in classes]) / 100
        return np.array([image[0, 0, 0] / 255 + lengths + offsets for image in images])

    def predict(self, images, *, classes, threshold, channel_order, batch_size):
        assert threshold is None
        images = list(images)
        scores = self.class_scores(images, classes=classes, channel_order=channel_order)
        predictions = []
        for image, image_scores in zip(images, scores, strict=True):
            height, width = image.shape[:2]
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(torch.tensor([[0, 0, width / 2, height]] * len(classes)))
            instances.scores = torch.from_numpy(image_scores)
            instances.pred_classes = torch.arange(len(classes))
            predictions.append(Prediction(instances, classes, (height, width)))
        return predictions


@pytest.fixture(autouse=True)
def known_scores_predictor(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("any.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr(glipv2_d2, "Predictor", KnownScoresPredictor)
    monkeypatch.setattr(KnownScoresPredictor, "depends_on_order", False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """0.png to 3.png, each 0.2 brighter than the one before."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (20, 10), (51 * i,) * 3).save(folder / f"{i}.png")
    return folder


def run(command: str, *arguments: object) -> int:
    return cli.main(["check-names", command, "--config", "any.yaml", *map(str, arguments)])


def test_absent_names_are_below_the_threshold_in_every_image(images, tmp_path, capsys):
    report, page = tmp_path / "out" / "absent.json", tmp_path / "absent.md"
    code = run(
        *("absent", "--input", images, "--classes", "cat, hippopotamus", "--threshold", 0.65),
        *("--batch-size", 3, "--json", report, "--markdown", page),
    )
    assert code == 0
    content = json.loads(report.read_text())
    assert content["absent"] == ["cat"]
    best = {row["name"]: row["best_score"] for row in content["names"]}
    assert best == {"cat": pytest.approx(0.63), "hippopotamus": pytest.approx(0.72)}
    assert all(row["best_image"].endswith("3.png") for row in content["names"])
    title, table = page.read_text().split("\n\n")[:2]
    assert title.startswith("# Best score of each class in 4 ") and table.startswith("| class")
    printed = capsys.readouterr().out
    assert "1 of 2 classes" in printed and str(report) in printed and str(page) in printed


def test_thresholds_file_decides_which_names_are_absent(images, tmp_path):
    report, thresholds = tmp_path / "absent.json", tmp_path / "thresholds.json"
    thresholds.write_text(ScoreThresholds({"cat": 0.5, "hippopotamus": 0.9}).to_json())
    names = ("--classes", "cat, hippopotamus", "--thresholds", thresholds, "--json", report)
    assert run("absent", "--input", images, *names) == 0
    assert json.loads(report.read_text())["absent"] == ["hippopotamus"]


def test_unreadable_images_are_skipped_and_set_the_exit_code(images, capsys):
    (images / "1.png").write_bytes(b"not an image")
    names = ("--classes", "cat, dog", "--batch-size", 2)
    assert run("absent", "--input", images, images / "missing.png", *names) == 1
    printed = capsys.readouterr().out
    assert printed.count("skipped: ") == 2 and "in 3 " in printed


@pytest.mark.parametrize("command", ["absent", "order"])
def test_an_image_that_the_model_fails_for_is_skipped(
    command, images, tmp_path, capsys, monkeypatch
):
    def fail_for_dark(self, images, **options):
        if any(image.max() == 0 for image in images):
            raise RuntimeError("no edges")
        return class_scores(self, images, **options)

    class_scores = KnownScoresPredictor.class_scores
    monkeypatch.setattr(KnownScoresPredictor, "class_scores", fail_for_dark)
    report = tmp_path / "report.json"
    names = ("--classes", "cat, dog", "--batch-size", 4, "--json", report)
    assert run(command, "--input", images, *names) == 1
    assert "0.png' cannot be predicted (RuntimeError: no edges)" in capsys.readouterr().out
    assert json.loads(report.read_text())["num_images"] == 3


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_an_unusable_output_is_reported_before_any_prediction(images, capsys, option):
    assert run("absent", "--input", images, "--classes", "cat", option, images) == 2
    assert f"{option} {str(images)!r} is a folder" in capsys.readouterr().err


def test_spread_is_zero_for_order_independent_scores(images, tmp_path):
    report = tmp_path / "order.json"
    names = ("--classes", "cat, dog, horse", "--orders", 4, "--json", report)
    assert run("order", "--input", images, *names) == 0
    content = json.loads(report.read_text())
    assert (content["num_orders"], content["max_spread"]) == (4, 0)


def test_spread_measures_order_dependent_scores(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(KnownScoresPredictor, "depends_on_order", True)
    report = tmp_path / "order.json"
    names = ("--classes", "cat, dog", "--orders", 12, "--json", report)
    assert run("order", "--input", images, *names) == 0
    content = json.loads(report.read_text())
    # Twelve random orders contain both orders of two names.
    assert content["mean_spread"] == pytest.approx(0.01, abs=1e-6)
    assert content["changed_top_classes"] == 1
    assert "12 orders" in capsys.readouterr().out


@pytest.fixture
def labelled(images: Path, tmp_path: Path) -> Path:
    """The left half of the two brighter images is a cat; there is no dog."""
    path = tmp_path / "val.json"
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in range(4)
                ],
                "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
                "annotations": [
                    {"id": i, "image_id": i, "category_id": 7, "bbox": [0, 0, 10, 10]}
                    for i in (2, 3)
                ],
            }
        )
    )
    return path


def test_calibrated_thresholds_are_written_for_the_predictor(labelled, images, tmp_path, capsys):
    output, report = tmp_path / "thresholds.json", tmp_path / "report.json"
    data = ("--annotations", labelled, "--images", images, "--output", output)
    assert run("calibrate", *data, "--min-positives", 2, "--json", report) == 0
    thresholds = ScoreThresholds.from_source(output)
    # The cats score 0.43 and 0.63, false positives at most 0.23.
    assert thresholds.per_class["cat"] == pytest.approx(0.33)
    content = json.loads(report.read_text())
    assert [row["status"] for row in content["names"]] == ["calibrated", "too few boxes"]
    assert (content["names"][0]["precision"], content["names"][0]["recall"]) == (1, 1)
    assert str(output) in capsys.readouterr().out


def test_too_few_labels_are_an_error_and_no_file_is_written(labelled, images, tmp_path, capsys):
    output = tmp_path / "thresholds.json"
    data = ("--annotations", labelled, "--images", images, "--output", output)
    assert run("calibrate", *data) == 2
    assert "2 boxes of the 2 classes, fewer than 10" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "--classes", "cat,,dog"), "name 2 of --classes"),
        (("absent", "--classes", "cat", "--batch-size", "0"), "--batch-size is 0"),
        (("absent", "--classes", "cat", "--threshold", "7"), "'7' is neither"),
        (("absent", "--classes", "cat", "--thresholds", "missing.json"), "missing.json"),
        (("order", "--classes", "cat, cat"), "1 names in 5 orders"),
        (("order", "--classes", "cat, dog", "--orders", "1"), "2 names in 1 orders"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(images, capsys, arguments, message):
    command, *rest = arguments
    assert run(command, "--input", images, *rest) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_opts_override_the_config(images):
    run("absent", "--input", images, "--classes", "cat", "--opts", "MODEL.DEVICE", "cpu")
    assert KnownScoresPredictor.opts[-2:] == ["MODEL.DEVICE", "cpu"]
