"""The demo, with a stand-in predictor: it detects every name or phrase in a fixed box."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import make_demo
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.prediction import Answer, Caption, Prediction, TaskResults


class FirstNamesPredictor:
    """Scores decrease by 0.2 per name, from 0.9; boxes of different names do not overlap."""

    model = SimpleNamespace(text_tasks=SimpleNamespace(answer=object(), caption=object()))
    cfg = CfgNode({"MODEL": {"GROUNDING": {"NMS_THRESH": 0.6}}})

    def __init__(self, *args, opts) -> None:
        pass

    def run_tasks(
        self, image, *, classes, questions, describe, ground_caption, threshold, channel_order
    ):
        assert ground_caption
        score = 0.8 if threshold == "model" else threshold
        phrases = replace(
            detect(image, ["a cat", "a cup", "a sky"]),
            text="a cat a cup a sky",
            spans=(((0, 5),), ((6, 11),), ((12, 17),)),
        )
        return TaskResults(
            detect(image, classes).above(score),
            [Answer(question, "yes", 0.8) for question in questions],
            Caption("a cat a cup a sky", phrases).above(score) if describe else None,
        )


def detect(image: np.ndarray, names: list[str]) -> Prediction:
    number = len(names)
    left = 10.0 * torch.arange(number)
    instances = Instances(image.shape[:2])
    instances.pred_boxes = Boxes(torch.stack([left, left, left + 8, left + 8], dim=1))
    instances.scores = 0.9 - 0.2 * torch.arange(number)
    instances.pred_classes = torch.arange(number)
    return Prediction(instances, list(names), image.shape[:2])


@pytest.fixture
def few_pictures(monkeypatch):
    """One photo and one scene, of another shape."""
    file = "skimage/data/chelsea.png"
    monkeypatch.setattr(make_demo, "PHOTOS", {file: make_demo.PHOTOS[file]})
    monkeypatch.setattr(make_demo, "SCENES", {"scene 1": make_demo.SCENES["scene 1"]})
    monkeypatch.setattr(make_demo, "Predictor", FirstNamesPredictor)


def test_the_demo_writes_an_overview_per_task_results_and_tables(few_pictures, tmp_path, capsys):
    assert make_demo.main(["--output", str(tmp_path / "demo"), "--threshold", "0.6"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *("boxes.jpg", "answers.jpg", "captions.jpg", "results.json")
    }
    for task in ("boxes", "answers", "captions"):
        with Image.open(tmp_path / "demo" / f"{task}.jpg") as sheet:
            assert sheet.width > make_demo.COLUMNS * make_demo.TILE_SIZE[0]
    cat, scene = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert cat["picture"] == "chelsea.png" and scene["picture"] == "scene 1"
    # Scores 0.9, 0.7 and 0.5: the third is below the threshold.
    assert [row["category_name"] for row in cat["detections"]] == ["cat", "dog"]
    assert [row["category_name"] for row in cat["caption_detections"]] == ["a cat", "a cup"]
    assert cat["answers"][0] == {"question": "what animal is this?", "answer": "yes", "score": 0.8}
    assert cat["caption"] == "a cat a cup a sky"
    assert "chelsea.png (451 x 300)" in printed and "what animal is this? yes" in printed


def test_a_model_without_text_heads_only_detects(few_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(FirstNamesPredictor, "model", SimpleNamespace(text_tasks=None))
    assert make_demo.main(["--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"boxes.jpg", "results.json"}


@pytest.mark.parametrize(("num_boxes", "num_rows"), [(0, 2), (8, 10), (9, 10), (30, 10)])
def test_a_table_has_at_most_ten_rows(num_boxes, num_rows):
    picture = make_demo.Picture("a", np.zeros((400, 400, 3), np.uint8), ["cat"], ["is it red?"])
    boxes = detect(picture.image, ["[cat]"] * num_boxes)
    results = TaskResults(boxes, [Answer("is it red?", "no", 0.8)], Caption("a cat"))
    table = make_demo.make_table(picture, results)
    assert table.row_count == num_rows
    cells = [str(cell) for column in table.columns for cell in column.cells]
    boxes_shown = [cell for cell in cells if cell.startswith("[cat] at ")]
    assert len(boxes_shown) == (num_boxes if num_boxes <= 8 else 7)
    assert not boxes_shown or boxes_shown[0] == "[cat] at 0, 0, size 8 x 8"
    assert (f"and {num_boxes - 7} more" in cells) == (num_boxes > 8)
    assert "is it red? no" in cells and "a cat" in cells


def test_there_are_eight_photos_and_two_scenes_each_with_questions():
    pictures = [*make_demo.photos(), *make_demo.scenes()]
    assert len(make_demo.PHOTOS) >= 8 and len(make_demo.SCENES) == 2
    assert len({picture.title for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.image.ndim == 3 and picture.image.dtype == np.uint8
        assert len(set(picture.names)) == len(picture.names) >= 5
        assert 2 <= len(picture.questions) <= 3


def test_a_scene_has_its_photos_side_by_side(monkeypatch):
    files = ["skimage/data/chelsea.png", "skimage/data/coffee.png"]
    monkeypatch.setattr(make_demo, "SCENES", {"scene": (files, ["cat"], ["what?"])})
    (scene,) = make_demo.scenes()
    assert scene.image.shape == (300, 451 + 450, 3)
    np.testing.assert_array_equal(scene.image[:, :451], make_demo.read_photo(files[0]))


def test_a_photo_of_a_package_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(make_demo, "PHOTOS", {"no_such_package/a.png": (["cat"], [])})
    with pytest.raises(FileNotFoundError, match="no_such_package is not installed; pip install"):
        list(make_demo.photos())


def test_tiles_have_one_width_and_their_text_below_the_image():
    wide = make_demo.Picture("wide.png", np.zeros((100, 300, 3), np.uint8), ["cat"], [])
    width, height = make_demo.TILE_SIZE
    plain = make_demo.make_tile(wide, None, [])
    lines = [[("long", make_demo.BLACK)] * 40, [("short", make_demo.BLACK)]]
    with_text = make_demo.make_tile(wide, None, lines)
    assert plain.shape[1] == with_text.shape[1] == width
    assert (with_text[: len(plain)] == plain).all()
    assert (with_text[len(plain) :] < 128).any(), "text in black"
    drawn = make_demo.make_tile(wide, detect(wide.image, ["cat"]), [])
    assert drawn.shape == plain.shape and (drawn != plain).any()
    # The image, 480 x 160, is centered between white margins.
    top = len(plain) - height
    assert (plain[top : top + 100] == 255).all() and (plain[top + 100 : top + 260] == 0).all()
    assert (plain[top + 260 :] == 255).all()


def test_an_overview_has_rows_of_equal_height():
    black = [np.zeros((height, make_demo.TILE_SIZE[0], 3), np.uint8) for height in (10, 30, 10, 20)]
    sheet = make_demo.make_overview(black)
    margin, width = make_demo.MARGIN, make_demo.TILE_SIZE[0] + make_demo.MARGIN
    assert sheet.shape == (2 * (30 + margin) + margin, 3 * width + margin, 3)
    assert (sheet[margin : margin + 10, margin:width] == 0).all()
    assert (sheet[margin + 10 : margin + 30, margin:width] == 255).all()
    second_row = 30 + 2 * margin
    assert (sheet[second_row : second_row + 20, margin:width] == 0).all()
    assert (sheet[second_row:, width + margin :] == 255).all()
