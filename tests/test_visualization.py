from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2 import visualization
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


def test_an_image_without_detections_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (700, 660, 3), dtype=np.uint8)
    drawn = draw_prediction(image, make_prediction(["cat"], [], (700, 660)))
    np.testing.assert_array_equal(drawn, image)


def test_a_small_image_is_enlarged_with_its_boxes():
    drawn = draw_prediction(
        np.full((40, 64, 3), 255, np.uint8), make_prediction(["cat"], [0], (40, 64))
    )
    assert drawn.shape == (400, 640, 3)
    # The left edge of the box, at x = 4 of 64, half way between y = 6 and 26 of 40.
    assert (drawn[160, 36:44] < 250).any() and (drawn[160, 100:200] == 255).all()


def test_two_classes_have_two_colours_in_every_image():
    image = np.full((40, 64, 3), 255, np.uint8)
    both = draw_prediction(image, make_prediction(["cat", "dog"], [0, 1], (40, 64)))
    again = draw_prediction(image, make_prediction(["cat", "dog"], [0, 1], (40, 64)))
    swapped = draw_prediction(image, make_prediction(["cat", "dog"], [1, 0], (40, 64)))
    np.testing.assert_array_equal(both, again)
    assert (both[160, 36:44] != swapped[160, 36:44]).any()


def test_dollar_signs_in_a_class_name_are_drawn_unchanged():
    image = np.full((40, 64, 3), 255, np.uint8)
    broken_formula = r"a $\frac{ bill$ and ünïcode_^"
    drawn = draw_prediction(image, make_prediction([broken_formula], [0], (40, 64)))
    assert drawn.shape == (400, 640, 3)


def test_a_box_without_limits_is_drawn_at_the_edges_of_the_image():
    prediction = make_prediction(["cat"], [0], (400, 640))
    prediction.instances.pred_boxes.tensor[:] = torch.tensor([[-1e12, 100, 1e12, torch.nan]])
    drawn = draw_prediction(np.full((400, 640, 3), 255, np.uint8), prediction)
    assert (drawn[100, ::100] != 255).any(axis=1).all()


def test_a_drawn_image_can_be_written_to():
    drawn = draw_prediction(
        np.zeros((400, 640, 3), np.uint8), make_prediction(["cat"], [0], (400, 640))
    )
    drawn[0, 0] = 7
    assert drawn[0, 0].tolist() == [7, 7, 7]


def test_a_label_has_one_line():
    image = np.full((400, 640, 3), 255, np.uint8)
    one, two = (
        draw_prediction(image, make_prediction([name], [0], (400, 640)))
        for name in ("a cat", "a\n  cat")
    )
    np.testing.assert_array_equal(one, two)


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, image.reshape(-1, 3).tolist()))


def test_a_phrase_below_an_image_has_the_colour_of_its_box():
    image = np.full((400, 640, 3), 255, np.uint8)
    plain = make_prediction(["a cat", "a dog"], [0, 1], (400, 640))
    captioned = replace(plain, text="a cat beside a dog", spans=(((0, 5),), ((13, 18),)))
    drawn = draw_with_text(image, captioned)
    assert drawn.shape[0] > 400 and drawn.shape[1:] == (640, 3)
    both = colours(drawn[400:])
    assert (0, 0, 0) in both, "beside"
    only_dog = replace(captioned, instances=captioned.instances[[1]])
    dog_colours = colours(draw_with_text(image, only_dog)[400:])
    box_colours = colours(draw_prediction(image, only_dog)) - {(255, 255, 255), (0, 0, 0)}
    assert dog_colours & box_colours, "the words have the colour of the box"
    assert both - dog_colours, "without its box, the cat is black"


def test_a_long_text_is_wrapped_into_lines():
    image = np.full((400, 640, 3), 255, np.uint8)
    prediction = make_prediction(["a cat"], [], (400, 640))
    heights = [
        draw_with_text(image, replace(prediction, text=text, spans=())).shape[0]
        for text in ("cat", "cat " * 60, "")
    ]
    assert heights[0] < heights[1] and heights[2] == heights[0]


def prediction_of(
    detections: list[tuple[str, float, list[float]]], size: tuple[int, int]
) -> Prediction:
    """From (class name, score, XYXY box), in the given order."""
    names = sorted({name for name, _, _ in detections})
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor([box for _, _, box in detections]))
    instances.scores = torch.tensor([score for _, score, _ in detections])
    instances.pred_classes = torch.tensor([names.index(name) for name, _, _ in detections])
    return Prediction(instances, names, size)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The boxes, label sizes and label boxes of each image that is drawn."""
    calls = []

    def place_labels(boxes, label_sizes, image_size):
        labels = place(boxes, label_sizes, image_size)
        calls.append((boxes, label_sizes, labels))
        return labels

    place = visualization.place_labels
    monkeypatch.setattr(visualization, "place_labels", place_labels)
    return calls


DOG_AND_RABBIT = [("dog", 0.6, [100.0, 100, 400, 400]), ("rabbit", 0.46, [200.0, 200, 500, 500])]


@pytest.mark.parametrize("order", [1, -1])
def test_the_box_with_the_higher_score_is_drawn_on_top(order: int):
    image = np.full((640, 640, 3), 255, np.uint8)
    alone = draw_prediction(image, prediction_of(DOG_AND_RABBIT[:1], (640, 640)))
    both = draw_prediction(image, prediction_of(DOG_AND_RABBIT[::order], (640, 640)))
    # The right edge of the dog crosses the upper edge of the rabbit here.
    np.testing.assert_array_equal(both[200, 399:402], alone[200, 399:402])
    assert (both[200, 450] != 255).any(), "the rabbit's edge"


def test_the_best_label_is_placed_first(placed):
    image = np.full((640, 640, 3), 255, np.uint8)
    draw_prediction(image, prediction_of(DOG_AND_RABBIT[::-1], (640, 640)))
    ((boxes, _, _),) = placed
    np.testing.assert_array_equal(boxes, [box for _, _, box in DOG_AND_RABBIT])


def test_only_the_best_of_several_detections_of_one_box_is_drawn(placed):
    image = np.full((640, 640, 3), 255, np.uint8)
    dog = ("dog", 0.6, [100.0, 100, 400, 400])
    others = [("rabbit", 0.46, [100.0, 100, 404, 398]), ("cat", 0.3, [100.0, 100, 400, 400])]
    several = prediction_of([others[0], dog, others[1]], (640, 640))
    drawn = draw_prediction(image, several)
    ((boxes, _, _),) = placed
    assert boxes.tolist() == [dog[2]]
    alone = replace(several, instances=several.instances[[1]])
    np.testing.assert_array_equal(drawn, draw_prediction(image, alone))


def test_two_phrases_with_one_box_have_its_colour():
    image = np.full((640, 640, 3), 255, np.uint8)
    box = [100.0, 100, 400, 400]
    plain = prediction_of([("a man", 0.6, box), ("his dress", 0.5, box)], (640, 640))
    drawn = draw_with_text(image, replace(plain, text="his dress", spans=((), ((0, 9),))))
    assert tuple(drawn[250, 100].tolist()) in colours(drawn[640:])


def test_labels_are_inside_the_image_and_apart(placed):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (12, 2, 2))
    for height, width in ((480, 640), (64, 64), (1500, 1200)):
        boxes = np.sort(corners, axis=1).reshape(-1, 4) * [width, height, width, height]
        detections = [("a dog", 0.9 - 0.05 * i, box) for i, box in enumerate(boxes.tolist())]
        image = np.zeros((height, width, 3), np.uint8)
        draw_prediction(image, prediction_of(detections, (height, width)))
        _, sizes, labels = placed[-1]
        assert (labels >= 0).all() and (labels[:, 2:] <= [width, height]).all()
        assert covered_area(labels) == 0
        drawn_height = sizes[:, 1] * max(1.0, 640 / max(height, width))
        assert (drawn_height >= 14).all(), "legible"


def covered_area(labels: np.ndarray) -> float:
    """The area of the intersections of all pairs of labels."""
    return sum(
        max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        for i, a in enumerate(labels.tolist())
        for b in labels.tolist()[:i]
    )


def test_labels_are_drawn_where_they_are_placed(placed):
    image = np.full((640, 640, 3), 255, np.uint8)
    drawn = draw_prediction(image, prediction_of(DOG_AND_RABBIT, (640, 640)))
    ((_, _, labels),) = placed
    for x0, y0, x1, y1 in labels.round().astype(int).tolist():
        assert (drawn[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] < 255).any(axis=2).mean() > 0.7
        assert (drawn[y0 - 3, x0:x1] == 255).all()


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1), (4000, 1), (1, 1)])
def test_a_strip_is_drawn_within_the_limits_of_a_jpeg_file(size):
    drawn = draw_prediction(np.zeros((*size, 3), np.uint8), make_prediction(["cat"], [0], size))
    assert min(drawn.shape[:2]) >= 1 and max(drawn.shape[:2]) < 65_536


def test_a_huge_image_is_shrunk_with_its_boxes_and_masks(monkeypatch):
    monkeypatch.setattr(visualization, "_MAX_PIXELS", 700 * 1000)
    prediction = make_prediction(["cat"], [0], (2800, 4000))
    prediction.instances.pred_boxes.tensor[:] = torch.tensor([400.0, 800, 1200, 2000])
    plain = draw_prediction(np.full((2800, 4000, 3), 255, np.uint8), prediction)
    assert plain.shape == (700, 1000, 3)
    # The left edge of the box, at x = 400 of 4000.
    assert (plain[350, 96:104] < 250).any() and (plain[350, 120:280] == 255).all()
    masks = torch.zeros(1, 2800, 4000, dtype=torch.bool)
    masks[:, 1200:1600, 600:1000] = True
    prediction.instances.pred_masks = masks
    drawn = draw_prediction(np.full((2800, 4000, 3), 255, np.uint8), prediction)
    assert (drawn[350, 200] < 255).any() and (drawn[350, 280] == 255).all()
    assert prediction.image_size == (2800, 4000)
