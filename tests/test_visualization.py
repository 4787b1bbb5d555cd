from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.prediction import Prediction
from glipv2_d2.visualization import draw_prediction, draw_with_text


def make_prediction(names: list[str], classes: list[int], size: tuple[int, int]) -> Prediction:
    boxes = torch.tensor([[4.0, 6.0, 24.0, 26.0], [30.0, 8.0, 58.0, 30.0]])[: len(classes)]
    instances = Instances(size)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([0.9, 0.6])[: len(classes)]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return Prediction(instances, names, size)


def test_a_mask_is_drawn_inside_its_box():
    image = np.full((400, 640, 3), 255, np.uint8)
    prediction = make_prediction(["cat"], [0], (400, 640))
    prediction.instances.pred_boxes.tensor[:] = torch.tensor([100.0, 100, 300, 300])
    plain = draw_prediction(image, prediction)
    masks = torch.zeros(1, 400, 640, dtype=torch.bool)
    masks[:, 200:280, 120:280] = True
    prediction.instances.pred_masks = masks
    drawn = draw_prediction(image, prediction)
    assert (plain[240, 200] == 255).all() and (drawn[240, 200] < 255).any()
    assert (drawn[150, 200] == plain[150, 200]).all()


def test_an_empty_mask_leaves_the_box():
    image = np.full((400, 640, 3), 255, np.uint8)
    prediction = make_prediction(["cat"], [0], (400, 640))
    plain = draw_prediction(image, prediction)
    prediction.instances.pred_masks = torch.zeros(1, 400, 640, dtype=torch.bool)
    np.testing.assert_array_equal(draw_prediction(image, prediction), plain)


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


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, picture.reshape(-1, 3).tolist()))


def test_a_phrase_below_a_picture_has_the_colour_of_its_boxes():
    image = np.full((400, 640, 3), 255, np.uint8)
    plain = make_prediction(["a cat", "a dog"], [0, 1], (400, 640))
    told = replace(plain, text="a cat beside a dog", spans=(((0, 5),), ((13, 18),)))
    drawn = draw_with_text(image, told)
    assert drawn.shape[0] > 400 and drawn.shape[1:] == (640, 3)
    both = colours(drawn[400:])
    assert (0, 0, 0) in both, "beside"
    only_dog = replace(told, instances=told.instances[[1]])
    of_dog = colours(draw_with_text(image, only_dog)[400:])
    of_box = colours(draw_prediction(image, only_dog)) - {(255, 255, 255), (0, 0, 0)}
    assert of_dog & of_box, "the words have the colour of the box"
    assert both - of_dog, "without its box, the cat is black"


def test_long_texts_are_written_in_lines():
    image = np.full((400, 640, 3), 255, np.uint8)
    prediction = make_prediction(["a cat"], [], (400, 640))
    heights = [
        draw_with_text(image, replace(prediction, text=text, spans=())).shape[0]
        for text in ("cat", "cat " * 60, "")
    ]
    assert heights[0] < heights[1] and heights[2] == heights[0]
