"""The shipped small models are what their configs build, within the sizes that they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glipv2_d2.checkpoint.file_reading import read_checkpoint
from glipv2_d2.predictor import Prediction, Predictor

PROJECT = Path(__file__).parents[1]
NAMES = ("glipv2_mini", "glipv2_mini_joint")


def weights(name: str) -> Path:
    return PROJECT / "glipv2_mini" / "assets" / f"{name}.pth"


@pytest.fixture(scope="module", params=NAMES)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    config = PROJECT / "configs" / f"{request.param}.yaml"
    return Predictor(config, weights(request.param), device="cpu")


def disc() -> np.ndarray:
    """(H, W) bool."""
    ys, xs = np.mgrid[0:320, 0:320]
    return (xs - 160) ** 2 + (ys - 170) ** 2 < 70**2


def best_apple(predictor: Predictor) -> Prediction:
    """What is found of a red disc on a plain background."""
    image = np.full((320, 320, 3), 200, dtype=np.uint8)
    image[disc()] = (200, 30, 40)
    prediction = predictor.predict(image, classes=["apple", "tomato"], channel_order="RGB")
    return prediction.above(prediction.instances.scores.max().item())


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_small(name: str) -> None:
    assert weights(name).stat().st_size <= 30 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_at_most_12_million_parameters_were_trained(name: str) -> None:
    """The frozen ones come in packages, and not in the file."""
    trained = [values.numel() for values in read_checkpoint(weights(name))["model"].values()]
    assert 1_000_000 < sum(trained) <= 12_000_000


def test_it_finds_a_large_apple_on_a_plain_background(predictor: Predictor) -> None:
    """Whatever it is called, the best box is around it."""
    box = best_apple(predictor).instances.pred_boxes.tensor[0]
    np.testing.assert_allclose(box, [90, 100, 230, 240], atol=20)


def test_the_apples_mask_covers_it(predictor: Predictor) -> None:
    if predictor.model.roi_heads is None:
        assert not best_apple(predictor).instances.has("pred_masks")
        return
    mask = best_apple(predictor).instances.pred_masks[0].numpy()
    assert (mask & disc()).sum() / (mask | disc()).sum() > 0.7
