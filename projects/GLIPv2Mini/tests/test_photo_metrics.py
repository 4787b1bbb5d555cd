"""Scores of a stand-in predictor on two annotated photos; the expected values are by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import score_photos
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from glipv2_d2.prediction import Answer, Caption, Prediction, TaskResults
from glipv2_mini.photo_metrics import PhotoMetric, box_metrics, photo_metrics
from glipv2_mini.photo_predictions import load_photos, predict_photos, presence_questions

CAT, LAMP, DOG = 1, 2, 3
CAT_1, LAMP_1 = [0, 0, 50, 50], [60, 60, 20, 20]
CAT_2, DOG_2 = [100, 0, 100, 50], [0, 0, 82, 50]

# Photo -> (class name, box XYWH, score).
DETECTIONS = {
    "one.jpg": [("cat", CAT_1, 0.9), ("lamp", LAMP_1, 0.8)],
    # The first lamp cannot be refuted: this photo is not annotated exhaustively with lamps.
    "two.jpg": [("lamp", DOG_2, 0.95), ("cat", CAT_2, 0.7)],
}
PHRASES = {"the cat": [CAT_1, LAMP_1], "the lamp": [], "the dog": [DOG_2, CAT_2]}
ANSWERS = {
    "what color is the cat?": "Black",
    "is there a dog?": "yes",
    "is there a cat?": "perhaps",
    "is there a cat in the picture?": "yes",
    "is there a lamp in the picture?": "no",
    "is there a dog in the picture?": "yes",
}
CAPTIONS = {"one.jpg": "Two cats on a sofa", "two.jpg": "a lamp"}


class StandIn:
    """A predictor with fixed results for each photo."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def predict(
        self, image: Path, *, caption: str, phrases: Sequence[str], threshold: None
    ) -> Prediction:
        assert phrases == [caption] and threshold is None
        found = [(0, box, 0.9 - 0.1 * i) for i, box in enumerate(PHRASES[caption])]
        return prediction(found, [caption])

    def run_tasks(
        self,
        image: Path,
        *,
        classes: Sequence[str],
        questions: Sequence[str],
        describe: bool,
        threshold: None,
    ) -> TaskResults:
        assert threshold is None
        found = [(classes.index(n), box, s) for n, box, s in DETECTIONS[image.name]]
        return TaskResults(
            prediction(found, classes),
            [Answer(question, ANSWERS[question], 0.8) for question in questions],
            Caption(CAPTIONS[image.name]) if describe else None,
        )


def prediction(found: Sequence[tuple[int, list[int], float]], names: Sequence[str]) -> Prediction:
    instances = Instances((100, 100))
    boxes = [[x, y, x + w, y + h] for _, (x, y, w, h), _ in found]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, _, score in found])
    instances.pred_classes = torch.tensor([index for index, _, _ in found], dtype=torch.int64)
    return Prediction(instances, list(names), (100, 100))


def annotation(number: int, image: int, category: int, box: list[int]) -> dict[str, Any]:
    area = box[2] * box[3]
    fields = {"image_id": image, "category_id": category, "bbox": box, "area": area}
    return {"id": number, "iscrowd": 0, **fields}


def question(text: str, answer: str) -> dict[str, Any]:
    return {"question": text, "answers": [answer] * 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    coco = {
        "images": [
            {
                "id": 1,
                "file_name": "one.jpg",
                "width": 100,
                "height": 100,
                "questions": [
                    question("what color is the cat?", "black"),
                    question("is there a dog?", "no"),
                ],
                "referring": [
                    {"phrase": "the cat", "bbox": CAT_1},
                    {"phrase": "the lamp", "bbox": LAMP_1},
                ],
                "not_exhaustive_category_ids": [],
                "neg_category_ids": [DOG],
            },
            {
                "id": 2,
                "file_name": "two.jpg",
                "width": 200,
                "height": 100,
                "questions": [
                    question("is there a dog?", "yes"),
                    question("is there a cat?", "yes"),
                ],
                "referring": [{"phrase": "the dog", "bbox": DOG_2}],
                "not_exhaustive_category_ids": [LAMP],
                "neg_category_ids": [],
            },
        ],
        "annotations": [
            annotation(1, 1, CAT, CAT_1),
            annotation(2, 1, LAMP, LAMP_1),
            annotation(3, 2, CAT, CAT_2),
            annotation(4, 2, DOG, DOG_2),
        ],
        "categories": [
            {"id": CAT, "name": "cat", "coco80": "cat"},
            {"id": LAMP, "name": "lamp"},
            {"id": DOG, "name": "dog", "coco80": "dog"},
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.fixture
def photos(folder: Path) -> COCO:
    return load_photos(folder)


@pytest.fixture
def metrics(photos: COCO) -> dict[str, PhotoMetric]:
    predictions = predict_photos(StandIn(), photos, Path("images"))
    return {metric.name: metric for metric in photo_metrics(photos, predictions)}


def check(metric: PhotoMetric, value: float, baseline: float, count: int) -> None:
    assert metric.value == pytest.approx(value)
    assert metric.baseline == pytest.approx(baseline)
    assert metric.count == count


@pytest.mark.parametrize("name", ["AP", "AP50"])
def test_ap_is_the_mean_over_names_beside_that_of_wrong_names(
    metrics: dict[str, PhotoMetric], name: str
) -> None:
    # Cats and lamps 100, dogs 0. With the next name each, only the "dog" that was a lamp is right.
    check(metrics[f"boxes {name}"], 200 / 3, 100 / 3, 4)
    check(metrics[f"COCO names {name}"], 50, 50, 3)
    check(metrics[f"other names {name}"], 100, 0, 1)


def test_a_false_detection_counts_where_the_name_is_annotated_exhaustively(photos: COCO) -> None:
    detections = predict_photos(StandIn(), photos, Path("images"), text=False).detections
    photos.imgs[2]["not_exhaustive_category_ids"] = []
    ap = {metric.name: metric.value for metric in box_metrics(photos, detections)}
    # The false lamp has the higher score: precision 1/2 at all recalls.
    assert ap["other names AP50"] == pytest.approx(50)


def test_boxes_without_names_are_compared_with_those_of_the_next_photo(
    metrics: dict[str, PhotoMetric],
) -> None:
    # In the other photo, the cat and the dog have an IoU of 0.82 and the others 0. So the two best
    # of four boxes are right: precision 1 at 51 of COCO's 101 recalls, and at 7 of its 10 IoUs.
    check(metrics["any name AP50"], 100, 100 * 51 / 101, 4)
    check(metrics["any name AR100"], 100, 100 * 0.5 * 0.7, 4)


def test_answers_are_compared_with_the_most_common_one_of_their_kind(
    metrics: dict[str, PhotoMetric],
) -> None:
    check(metrics["questions"], 50, 75, 4)
    check(metrics["questions: is there"], 100 / 3, 200 / 3, 3)
    check(metrics["questions: what color"], 100, 100, 1)
    assert metrics["questions: is there"].baseline_name == "yes"


def test_the_best_box_of_a_phrase_is_compared_with_the_largest_box(
    metrics: dict[str, PhotoMetric],
) -> None:
    check(metrics["referring P@0.5"], 200 / 3, 100 / 3, 3)


def test_captions_are_compared_with_those_of_the_other_photos(
    metrics: dict[str, PhotoMetric],
) -> None:
    check(metrics["captions that name a thing that is there"], 50, 100, 2)


def test_affirmed_presence_is_compared_with_the_rate_over_all_names(
    metrics: dict[str, PhotoMetric],
) -> None:
    check(metrics["present things affirmed"], 75, 80, 4)
    check(metrics["absent things affirmed"], 100, 80, 1)


@pytest.mark.parametrize(("num_absent", "num_questions"), [(3, 3), (19, 19), (20, 10), (29, 15)])
def test_at_least_ten_absent_names_are_in_questions(num_absent: int, num_questions: int) -> None:
    names = {number: {"name": f"thing{number}"} for number in range(num_absent)}
    photos = SimpleNamespace(cats=names, imgToAnns={1: []})
    image = {"id": 1, "neg_category_ids": list(names)}
    assert len(presence_questions(photos, image)) == num_questions


def test_a_model_without_detections_has_ap_zero(photos: COCO) -> None:
    assert {metric.value for metric in box_metrics(photos, [])} == {0.0}


def test_the_tool_prints_and_writes_every_metric(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(score_photos, "Predictor", StandIn)
    output = folder / "scores.json"
    arguments = ["config.yaml", "weights.pth", "--data", str(folder), "--output", str(output)]
    assert score_photos.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "one.jpg: Two cats on a sofa" in printed
    assert "| boxes AP50 | 66.7 | 33.3 | wrong names | 4 |" in printed
    content = json.loads(output.read_text())
    assert len(content["metrics"]) == 15
    assert content["phrases"][2]["phrase"] == "the dog"
    assert len(content["detections"]) == 4


def test_without_text_only_boxes_are_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(score_photos, "Predictor", StandIn)
    assert score_photos.main(["c.yaml", "w.pth", "--data", str(folder), "--no-text"]) == 0
    printed = capsys.readouterr().out
    assert "boxes AP" in printed
    assert "questions" not in printed and "captions" not in printed


def test_missing_photos_name_the_script(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert score_photos.main(["c.yaml", "w.pth", "--data", str(tmp_path)]) == 2
    assert "prepare_photos.py" in capsys.readouterr().err
