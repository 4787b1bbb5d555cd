from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.predictor import Prediction
from glipv2_d2.visualization import draw_prediction


def make_prediction(names: list[str], classes: list[int], size: tuple[int, int]) -> Prediction:
    boxes = torch.tensor([[4.0, 6.0, 24.0, 26.0], [30.0, 8.0, 58.0, 30.0]])[: len(classes)]
    instances = Instances(size)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([0.9, 0.6])[: len(classes)]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return Prediction(instances, names, size)


def test_a_picture_without_detections_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (700, 660, 3), dtype=np.uint8)
    drawn = draw_prediction(image, make_prediction(["cat"], [], (700, 660)))
    np.testing.assert_array_equal(drawn, image)


def test_a_small_picture_is_enlarged_with_its_boxes():
    drawn = draw_prediction(
        np.full((40, 64, 3), 255, np.uint8), make_prediction(["cat"], [0], (40, 64))
    )
    assert drawn.shape == (400, 640, 3)
    # The left edge of the box, at x = 4 of 64, half way between y = 6 and 26 of 40.
    assert (drawn[160, 36:44] < 250).any() and (drawn[160, 100:200] == 255).all()


def test_two_classes_have_two_colours_in_every_picture():
    image = np.full((40, 64, 3), 255, np.uint8)
    both = draw_prediction(image, make_prediction(["cat", "dog"], [0, 1], (40, 64)))
    again = draw_prediction(image, make_prediction(["cat", "dog"], [0, 1], (40, 64)))
    swapped = draw_prediction(image, make_prediction(["cat", "dog"], [1, 0], (40, 64)))
    np.testing.assert_array_equal(both, again)
    assert (both[160, 36:44] != swapped[160, 36:44]).any()


def test_dollar_signs_in_a_name_are_drawn_as_they_are():
    image = np.full((40, 64, 3), 255, np.uint8)
    broken_formula = r"a $\frac{ bill$ and ünïcode_^"
    drawn = draw_prediction(image, make_prediction([broken_formula], [0], (40, 64)))
    assert drawn.shape == (400, 640, 3)
