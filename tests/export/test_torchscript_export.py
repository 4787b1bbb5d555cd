"""A traced model is right on other images, and refuses other sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.models import random_image

from glipv2_d2 import Predictor
from glipv2_d2.export.models import parse_size
from glipv2_d2.export.torchscript_export import export_torchscript

NAMES = ["cat", "traffic light", "zebra"]


@pytest.mark.filterwarnings("ignore")
@torch.jit.optimized_execution(False)
@torch.no_grad()
def test_detections_are_those_of_the_model_and_other_sizes_are_refused(
    predictor: Predictor, tmp_path: Path
) -> None:
    folder = export_torchscript(predictor, tmp_path / "out", NAMES, size=(64, 80))
    graph = torch.jit.load(folder / "model.pt")
    for seed in (1, 2):
        image = random_image(64, 80, seed=seed)
        boxes, scores, classes = graph(image)
        expected = predictor.model([{"image": image, "classes": NAMES}])[0]["instances"]
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores, expected.scores)
        assert classes.tolist() == expected.pred_classes.tolist()
    with pytest.raises(torch.jit.Error, match="this one has 80 x 64: resize it"):
        graph(random_image(80, 64))
    settings = json.loads((folder / "export.json").read_text())
    assert settings["class_names"] == NAMES and settings["channels"] == "BGR"


@pytest.mark.parametrize(
    "text", ["480", "480x", "480x640x3", "31x64", "64x9000", "-64x64", "64*64"]
)
def test_an_invalid_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="pass HEIGHTxWIDTH in pixels"):
        parse_size(text)


def test_a_size_is_height_and_width() -> None:
    assert parse_size(" 480X640") == (480, 640)
