"""The shipped weights give the detections, answers and captions they gave when stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from glipv2_d2.predictor import Prediction, Predictor

PROJECT = Path(__file__).parents[1]
STORED = json.loads((PROJECT / "tests" / "assets" / "shipped_outputs.json").read_text())
PHOTOS = ("chelsea", "coffee", "astronaut", "rocket")
NAMES = ["cat", "coffee cup", "spoon", "astronaut", "flag", "rocket", "apple", "dog", "zebra"]
NUM_STORED = 12
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.05  # pixels
OPTIONS: Any = {"channel_order": "RGB", "threshold": None}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    weights = PROJECT / "glipv2_mini" / "assets" / "glipv2_mini.pth"
    config = PROJECT / "configs" / "glipv2_mini.yaml"
    # In float32: integers turn rounding errors of another CPU into other levels.
    opts = ["MODEL.EVIDENCE.INT8_CLASSIFIER", False]
    return Predictor(config, weights, device="cpu", opts=opts)


def rows(scores: list[float], boxes: list[list[float]], labels: list[str]) -> list[tuple]:
    """One row per detection; detections of tied scores in the order of label and box."""
    found = zip(scores, labels, boxes, strict=True)
    return sorted(found, key=lambda row: (-round(row[0], 3), row[1], row[2]))


def assert_same(prediction: Prediction, stored: dict[str, Any]) -> None:
    instances = prediction.instances[:NUM_STORED]
    boxes = instances.pred_boxes.tensor.tolist()
    ours = rows(instances.scores.tolist(), boxes, prediction.labels[:NUM_STORED])
    expected = rows(stored["scores"], stored["boxes"], stored["labels"])
    assert len(ours) == len(expected)
    for (score, label, box), (stored_score, stored_label, stored_box) in zip(
        ours, expected, strict=True
    ):
        assert label == stored_label
        assert score == pytest.approx(stored_score, abs=SCORE_TOLERANCE)
        np.testing.assert_allclose(box, stored_box, atol=BOX_TOLERANCE)
    if "mask_pixels" in stored:
        pixels = sorted(int(mask.sum()) for mask in instances.pred_masks)
        # Pixels at the threshold may fall on either side.
        np.testing.assert_allclose(pixels, sorted(stored["mask_pixels"]), atol=20, rtol=0.01)


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_model_detects_answers_and_describes_the_same(photo: str, predictor: Predictor) -> None:
    image, stored = getattr(data, photo)(), STORED[photo]
    assert_same(predictor.predict(image, classes=NAMES, **OPTIONS), stored["detect"])
    phrase = "a cat on the left of a cup"
    assert_same(predictor.ground(image, phrase, **OPTIONS), stored["ground"])

    grounded = predictor.answer(image, "is there a cat?", **OPTIONS, ground=True)
    question, choices = "what is in the picture?", ["rocket", "coffee", "cat"]
    answers = [
        grounded,
        predictor.answer(image, question, **OPTIONS),
        predictor.answer(image, question, **OPTIONS, choices=choices),
    ]
    for answer, (text, score) in zip(answers, stored["answers"], strict=True):
        assert answer.answer == text
        assert answer.score == pytest.approx(score, abs=SCORE_TOLERANCE)
    assert_same(grounded.grounding, stored["answer_grounding"])

    caption = predictor.caption(image, **OPTIONS, ground=True)
    assert caption.caption == stored["caption"]
    assert_same(caption.grounding, stored["caption_grounding"])
