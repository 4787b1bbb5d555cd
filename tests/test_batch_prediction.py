from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.fixed_predictor import FixedPredictor
from PIL import Image

from glipv2_d2.batch_prediction import FilePrompts, ImageBatches, write_json
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.images import read_image
from glipv2_d2.prediction import Prediction


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two images with a missing file between them."""
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (32, 20)).save(tmp_path / name)
    return [tmp_path / name for name in ("a.jpg", "missing.png", "b.png")]


def test_batches_keep_the_index_of_each_file_and_skip_unreadable_ones(paths: list[Path]) -> None:
    steps: list[int] = []
    batches = ImageBatches(paths, 2, steps.append)
    assert [list(images) for images in batches] == [[0], [2]]
    assert batches.loaded == [paths[0], paths[2]]
    assert len(batches.skipped) == 1 and "missing.png" in batches.skipped[0]
    assert steps == [2, 1]


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (FilePrompts(classes=[["cat"], ["bird"], ["dog"]]), [["cat"], ["dog"]]),
        (FilePrompts(question=["red sky?", "sky?", "blue sky?"]), ["red sky?", "blue sky?"]),
    ],
)
def test_prompts_may_differ_per_file(
    prompts: FilePrompts, names: list[Any], paths: list[Path]
) -> None:
    images = {0: read_image(paths[0]), 2: read_image(paths[2])}
    results = prompts.predict(FixedPredictor(), images, ScoreThresholds({}))
    found = [text.get("question", prediction.labels) for text, prediction in results]
    assert found == names


def test_boxes_inside_a_better_one_of_their_name_are_dropped(paths: list[Path]) -> None:
    class TwoBoxes:
        def predict(self, images: list[Any], **options: Any) -> list[Prediction]:
            rows = [
                {"bbox": [0, 0, 20, 20], "score": 0.9, "category_id": 0},
                {"bbox": [2, 2, 9, 9], "score": 0.8, "category_id": 0},
            ]
            return [Prediction.from_coco(rows, ["cat"], (20, 32)) for _ in images]

    images = {0: read_image(paths[0])}
    for without_parts, scores in ((False, [0.9, 0.8]), (True, [0.9])):
        prompts = FilePrompts(classes=["cat"], without_parts=without_parts)
        ((_, prediction),) = prompts.predict(TwoBoxes(), images, ScoreThresholds({}))
        assert prediction.instances.scores.tolist() == pytest.approx(scores)


def test_result_file_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        write_json([{"score": object()}], path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["results.json"]
