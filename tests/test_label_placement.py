from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.label_placement import place_labels

SIZE = (480, 640)
LABEL = np.array([[80.0, 20.0]])


def place(*boxes: list[float]) -> list[list[float]]:
    return place_labels(np.array(boxes), LABEL.repeat(len(boxes), 0), SIZE).tolist()


def test_a_label_is_above_the_left_corner_of_its_box() -> None:
    assert place([100, 100, 300, 300]) == [[100, 80, 180, 100]]


def test_a_label_at_the_border_is_moved_into_the_image() -> None:
    assert place([600, 0, 640, 300]) == [[560, 0, 640, 20]]


def test_two_boxes_with_the_same_corner_have_labels_side_by_side() -> None:
    first, second = place([100, 100, 300, 300], [100, 100, 250, 250])
    assert first == [100, 80, 180, 100]
    assert second == [100, 100, 180, 120], "inside its box"


def test_the_second_label_of_a_small_box_is_outside() -> None:
    _, second = place([100, 100, 130, 130], [100, 100, 130, 130])
    x0, y0, x1, y1 = second
    assert y1 <= 100 or y0 >= 130 or x1 <= 100 or x0 >= 130


@pytest.mark.parametrize("box", [[-50, -50, 700, 500], [639, 479, 640, 480], [5, 5, 5, 5]])
def test_a_label_is_inside_the_image_wherever_its_box_is(box: list[float]) -> None:
    ((x0, y0, x1, y1),) = place(box)
    assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480


def test_a_label_wider_than_the_image_begins_at_its_left_border() -> None:
    labels = place_labels(np.array([[50.0, 50, 60, 60]]), np.array([[900.0, 20.0]]), SIZE)
    assert labels.tolist() == [[0, 30, 900, 50]]


def test_without_boxes_there_are_no_labels() -> None:
    assert place_labels(np.zeros((0, 4)), np.zeros((0, 2)), SIZE).shape == (0, 4)


def test_many_boxes_at_one_place_have_labels_apart() -> None:
    labels = place(*[[100.0, 100, 400, 400]] * 15)
    for i, (ax0, ay0, ax1, ay1) in enumerate(labels):
        for bx0, by0, bx1, by1 in labels[:i]:
            assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 30))
def test_labels_are_inside_the_image_and_earlier_ones_do_not_move(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (num, 2, 2)) * [640, 480]
    boxes = np.sort(corners, axis=1).reshape(num, 4)
    sizes = rng.uniform([20, 10], [120, 30], (num, 2))
    labels = place_labels(boxes, sizes, SIZE)
    assert (labels >= 0).all() and (labels[:, 2:] <= [640, 480]).all()
    np.testing.assert_allclose(labels[:, 2:] - labels[:, :2], sizes)
    half = num // 2
    np.testing.assert_array_equal(place_labels(boxes[:half], sizes[:half], SIZE), labels[:half])
