"""The demo, with a stand-in predictor: it detects the first name or phrase in a fixed box."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import make_demo
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.data.drawn import write_drawn
from glipv2_d2.prediction import Answer, Caption, Prediction


class FirstNamePredictor:
    model = SimpleNamespace(text_tasks=SimpleNamespace(answer=object(), caption=object()))

    def __init__(self, *args) -> None:
        pass

    def predict(self, images, *, classes, **options):
        return [self.detect(image, names) for image, names in zip(images, classes, strict=True)]

    def answer(self, images, questions, **options):
        return [
            Answer(question, "yes", 0.8, self.detect(image, [question]))
            for image, question in zip(images, questions, strict=True)
        ]

    def caption(self, images, **options):
        return [Caption("a picture", self.detect(image, ["a picture"])) for image in images]

    def detect(self, image: np.ndarray, names: list[str]) -> Prediction:
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 3.0, 90.0, 80.0]]))
        instances.scores = torch.tensor([0.9])
        instances.pred_classes = torch.tensor([0])
        return Prediction(instances, names, image.shape[:2])


@pytest.fixture
def datasets(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def test_the_demo_writes_images_results_and_an_overview_for_every_task(
    datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(make_demo, "Predictor", FirstNamePredictor)
    demo = tmp_path / "demo"
    assert make_demo.main(["--output", str(demo)]) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    num_examples = len(make_demo.PHOTOS) + make_demo.SCENES_PER_KIND
    rows = {}
    for task in ("detections", "answers", "captions"):
        rows[task] = json.loads((demo / f"{task}.json").read_text())
        assert len(rows[task]) == len(list((demo / task).glob("*.jpg"))) == num_examples
        with Image.open(demo / f"{task}.jpg") as sheet:
            assert sheet.width == 3 * make_demo.TILE_SIZE[0]
        assert f"{task}.jpg" in printed
    found = {Path(row["file_name"]).stem: row["category_name"] for row in rows["detections"]}
    assert found.items() >= {("chelsea", "cat"), ("coffee", "coffee cup"), ("rocket", "rocket")}
    answers = {Path(row["file_name"]).stem: row for row in rows["answers"]}
    assert answers["chelsea"]["question"] == "is there a cat in the picture?"
    assert answers["chelsea"]["answer"] == "yes"
    assert {row["caption"] for row in rows["captions"]} == {"a picture"}


def test_a_model_without_text_heads_only_detects(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(make_demo, "Predictor", FirstNamePredictor)
    monkeypatch.setattr(FirstNamePredictor, "model", SimpleNamespace(text_tasks=None))
    assert make_demo.main(["--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"detections.json"}


def test_every_photo_exists_and_has_absent_names():
    examples = make_demo.photo_examples()
    assert len(examples) >= 4
    assert all(example.image.is_file() for example in examples)
    assert all(len(example.names) >= 3 for example in examples)


def test_a_scene_has_its_own_names_first_and_no_duplicates(datasets):
    file = write_drawn(datasets, split="drawn", num_images=4, size=96, seed=0)
    coco = json.loads(file.read_text())
    name_of_id = {category["id"]: category["name"] for category in coco["categories"]}
    examples = make_demo.scene_examples(file)
    assert len(examples) == make_demo.SCENES_PER_KIND
    for image, example in zip(coco["images"], examples, strict=False):
        ids = [a["category_id"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        own = {name_of_id[i] for i in ids}
        assert example.image.is_file()
        assert set(example.names[: len(own)]) == own
        assert len(set(example.names)) == len(own) + make_demo.OTHER_NAMES_PER_SCENE


def test_composed_scenes_are_included_if_they_exist(datasets, tmp_path):
    without = make_demo.collect_examples(tmp_path)
    write_drawn(datasets / "stamps", split="novel", num_images=1, size=96, seed=0)
    with_scenes = make_demo.collect_examples(tmp_path)
    assert len(with_scenes) == len(without) + 1
    assert with_scenes[-1].image.parent == datasets / "stamps" / "novel"
