"""The shipped small model is what its config builds, within the sizes that it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glipv2_d2.predictor import Predictor

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "glipv2_d2" / "assets" / "glipv2_mini.pth"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(ROOT / "configs" / "mini" / "glipv2_mini.yaml", WEIGHTS, device="cpu")


def test_the_file_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 25 * 2**20


def test_at_most_12_million_parameters_are_trained(predictor: Predictor) -> None:
    trained = [p.numel() for p in predictor.model.parameters() if p.requires_grad]
    assert 1_000_000 < sum(trained) <= 12_000_000


def test_it_finds_a_large_apple_on_a_plain_background(predictor: Predictor) -> None:
    """A red disc: whatever it is called, the best box is around it."""
    ys, xs = np.mgrid[0:320, 0:320]
    image = np.full((320, 320, 3), 200, dtype=np.uint8)
    image[(xs - 160) ** 2 + (ys - 170) ** 2 < 70**2] = (200, 30, 40)
    best = predictor.predict(image, classes=["apple", "tomato"], channel_order="RGB").instances[0]
    np.testing.assert_allclose(best.pred_boxes.tensor[0], [90, 100, 230, 240], atol=20)
