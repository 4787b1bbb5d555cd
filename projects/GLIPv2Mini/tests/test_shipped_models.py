"""The shipped small model is what its config builds, within the size that it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glipv2_d2.predictor import Prediction, Predictor

PROJECT = Path(__file__).parents[1]
WEIGHTS = PROJECT / "glipv2_mini" / "assets" / "glipv2_mini.pth"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(PROJECT / "configs" / "glipv2_mini.yaml", WEIGHTS, device="cpu")


def disc() -> np.ndarray:
    """(H, W) bool."""
    ys, xs = np.mgrid[0:320, 0:320]
    return (xs - 160) ** 2 + (ys - 170) ** 2 < 70**2


def best_apple(predictor: Predictor) -> Prediction:
    """What is found of a red disc on a plain background."""
    image = np.full((320, 320, 3), 200, dtype=np.uint8)
    image[disc()] = (200, 30, 40)
    prediction = predictor.predict(
        image, classes=["apple", "tomato"], threshold=None, channel_order="RGB"
    )
    return prediction.above(prediction.instances.scores.max().item())


def test_the_file_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 18e6


def test_it_finds_a_large_apple_on_a_plain_background(predictor: Predictor) -> None:
    """Whatever it is called, the best box is around it."""
    box = best_apple(predictor).instances.pred_boxes.tensor[0]
    np.testing.assert_allclose(box, [90, 100, 230, 240], atol=20)


def test_the_apples_mask_covers_it(predictor: Predictor) -> None:
    mask = best_apple(predictor).instances.pred_masks[0].numpy()
    assert (mask & disc()).sum() / (mask | disc()).sum() > 0.7
