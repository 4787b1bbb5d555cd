"""Clear relations of objects."""

from __future__ import annotations

import pytest

from glipv2_mini.data.relations import are_near, largest_of, order_along, smallest_of
from glipv2_mini.data.scene_text import Thing

SIZE = (200, 100)


def thing(x: int, y: int, width: int, height: int, area: int | None = None) -> Thing:
    return Thing("dog", (x, y, width, height), width * height if area is None else area)


@pytest.mark.parametrize(
    ("second", "order"),
    [
        # 31 of 200 pixels are over 15 %, 29 are not.
        (thing(41, 10, 20, 20), [0, 1]),
        (thing(39, 10, 20, 20), None),
        # One inside the other is not left, at any distance of the centres.
        (thing(0, 0, 200, 100), None),
    ],
)
def test_an_order_needs_distance(second: Thing, order: list[int] | None) -> None:
    assert order_along(0, [thing(10, 10, 20, 20), second], SIZE) == order


def test_three_objects_are_ordered_from_left_to_right() -> None:
    things = [thing(150, 0, 20, 20), thing(0, 50, 20, 20), thing(75, 30, 20, 20)]
    assert order_along(0, things, SIZE) == [1, 2, 0]
    assert order_along(1, things, SIZE) == [0, 2, 1]


def test_the_largest_has_twice_the_box_and_mask_of_each_other() -> None:
    things = [thing(0, 0, 10, 10), thing(0, 0, 20, 20), thing(0, 0, 5, 9)]
    assert (largest_of(things), smallest_of(things)) == (1, 2)
    assert largest_of([*things, thing(0, 0, 18, 18)]) is None


def test_a_large_box_with_a_small_mask_is_not_larger() -> None:
    assert largest_of([thing(10, 10, 20, 20), thing(10, 10, 40, 20, area=600)]) is None


def test_near_objects_have_a_gap_of_at_most_a_tenth_of_the_image() -> None:
    first = thing(0, 0, 50, 50)
    assert are_near(first, thing(70, 0, 20, 20), SIZE)
    assert not are_near(first, thing(71, 0, 20, 20), SIZE)
    assert not are_near(first, thing(0, 61, 20, 20), SIZE)
