"""The predictor of these tests is as sure of a name as the brightness of a picture and its length
say; or, where the order counts, as its place in the list."""

from __future__ import annotations

import json
from pathlib import Path

import check_names
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.models import tiny_cfg
from PIL import Image

from glipv2_d2.evaluation.thresholds import NameThresholds
from glipv2_d2.predictor import Prediction


class KnownPredictor:
    """Finds every name in the left half of every picture."""

    order_counts = False
    opts: list[str] = []  # noqa: RUF012 - what the last one was made with

    def __init__(self, config: str, opts: list[str]) -> None:
        KnownPredictor.opts = opts
        self.cfg = tiny_cfg()

    def name_scores(self, images, *, classes, channel_order):
        assert channel_order == "RGB"
        places = np.arange(len(classes)) * 0.01 * self.order_counts
        lengths = np.array([len(name) for name in classes]) / 100
        return np.array([image[0, 0, 0] / 255 + lengths + places for image in images])

    def predict(self, images, *, classes, channel_order, batch_size):
        images = list(images)
        scores = self.name_scores(images, classes=classes, channel_order=channel_order)
        predictions = []
        for image, of_image in zip(images, scores, strict=True):
            height, width = image.shape[:2]
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(torch.tensor([[0, 0, width / 2, height]] * len(classes)))
            instances.scores = torch.from_numpy(of_image)
            instances.pred_classes = torch.arange(len(classes))
            predictions.append(Prediction(instances, classes, (height, width)))
        return predictions


@pytest.fixture(autouse=True)
def known_predictor(monkeypatch):
    monkeypatch.setattr(check_names, "Predictor", KnownPredictor)
    monkeypatch.setattr(KnownPredictor, "order_counts", False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """0.png to 3.png, brighter by a fifth each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (20, 10), (51 * i,) * 3).save(folder / f"{i}.png")
    return folder


def run(command: str, *arguments: object) -> int:
    return check_names.main([command, "--config-file", "any.yaml", *map(str, arguments)])


def test_absent_names_stay_below_the_threshold_in_every_picture(pictures, tmp_path, capsys):
    report, page = tmp_path / "out" / "absent.json", tmp_path / "absent.md"
    code = run(
        *("absent", "--input", pictures, "--classes", "cat, hippopotamus", "--threshold", 0.65),
        *("--batch-size", 3, "--json", report, "--markdown", page),
    )
    assert code == 0
    content = json.loads(report.read_text())
    assert content["absent"] == ["cat"]
    best = {row["name"]: row["best_score"] for row in content["names"]}
    assert best == {"cat": pytest.approx(0.63), "hippopotamus": pytest.approx(0.72)}
    assert all(row["best_image"].endswith("3.png") for row in content["names"])
    assert page.read_text().startswith("# The best score of every name in 4 pictures\n\n| name")
    printed = capsys.readouterr().out
    assert "1 of 2 names" in printed and str(report) in printed and str(page) in printed


def test_thresholds_of_a_calibration_decide_who_is_absent(pictures, tmp_path):
    report, thresholds = tmp_path / "absent.json", tmp_path / "thresholds.json"
    thresholds.write_text(NameThresholds({"cat": 0.5, "hippopotamus": 0.9}).to_json())
    names = ("--classes", "cat, hippopotamus", "--thresholds", thresholds, "--json", report)
    assert run("absent", "--input", pictures, *names) == 0
    assert json.loads(report.read_text())["absent"] == ["hippopotamus"]


def test_bad_pictures_are_skipped_named_and_make_the_exit_code(pictures, capsys):
    (pictures / "1.png").write_bytes(b"no picture")
    names = ("--classes", "cat, dog", "--batch-size", 2)
    assert run("absent", "--input", pictures, pictures / "gone.png", *names) == 1
    printed = capsys.readouterr().out
    assert printed.count("skipped: ") == 2 and "in 3 pictures" in printed


def test_an_order_that_does_not_matter_has_no_spread(pictures, tmp_path):
    report = tmp_path / "order.json"
    names = ("--classes", "cat, dog, horse", "--orders", 4, "--json", report)
    assert run("order", "--input", pictures, *names) == 0
    content = json.loads(report.read_text())
    assert (content["num_orders"], content["max_spread"]) == (4, 0)


def test_an_order_that_matters_shows_how_much(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(KnownPredictor, "order_counts", True)
    report = tmp_path / "order.json"
    names = ("--classes", "cat, dog", "--orders", 12, "--json", report)
    assert run("order", "--input", pictures, *names) == 0
    content = json.loads(report.read_text())
    # Two places, and among twelve orders both.
    assert content["mean_spread"] == pytest.approx(0.01, abs=1e-6)
    assert content["changed_best_names"] == 1
    assert "12 orders" in capsys.readouterr().out


@pytest.fixture
def labelled(pictures: Path, tmp_path: Path) -> Path:
    """The left half of the two brighter pictures is a cat; nothing is a dog."""
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


def test_calibrated_thresholds_are_written_for_the_predictor(labelled, pictures, tmp_path, capsys):
    output, report = tmp_path / "thresholds.json", tmp_path / "report.json"
    data = ("--annotations", labelled, "--images", pictures, "--output", output)
    assert run("calibrate", *data, "--min-positives", 2, "--json", report) == 0
    thresholds = NameThresholds.of(output)
    # The cats score 0.43 and 0.63, what is wrongly called a cat 0.23 and less.
    assert thresholds.score_of_name["cat"] == pytest.approx(0.33)
    content = json.loads(report.read_text())
    assert [row["status"] for row in content["names"]] == ["calibrated", "too few boxes"]
    assert (content["names"][0]["precision"], content["names"][0]["recall"]) == (1, 1)
    assert str(output) in capsys.readouterr().out


def test_too_few_labels_are_said_and_nothing_is_written(labelled, pictures, tmp_path, capsys):
    output = tmp_path / "thresholds.json"
    data = ("--annotations", labelled, "--images", pictures, "--output", output)
    assert run("calibrate", *data) == 2
    assert "2 boxes of the 2 names, fewer than 10" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "--classes", "cat,,dog"), "name 2 of --classes"),
        (("absent", "--classes", "cat", "--batch-size", "0"), "--batch-size is 0"),
        (("absent", "--classes", "cat", "--threshold", "7"), "is 7.0"),
        (("absent", "--classes", "cat", "--thresholds", "gone.json"), "gone.json"),
        (("order", "--classes", "cat, cat"), "1 names in 5 orders"),
        (("order", "--classes", "cat, dog", "--orders", "1"), "2 names in 1 orders"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_value(pictures, capsys, arguments, message):
    command, *rest = arguments
    assert run(command, "--input", pictures, *rest) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_the_last_arguments_change_the_config(pictures):
    run("absent", "--input", pictures, "--classes", "cat", "--opts", "MODEL.DEVICE", "cpu")
    assert KnownPredictor.opts == ["MODEL.DEVICE", "cpu"]
