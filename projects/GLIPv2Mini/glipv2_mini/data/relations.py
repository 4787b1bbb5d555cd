"""Clear relations of two objects: which is first along an axis, which is larger, which are near."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from glipv2_mini.data.scene_text import Thing

# Least distance between two centres along an axis, as a share of the image's side, for one object
# to be the left (upper) one.
MIN_DISTANCE = 0.15
# Least ratio of two areas, of the boxes and of the masks, for one object to be the larger one.
# Both count: an occluded object can have a large box and a small mask.
MIN_AREA_RATIO = 2.0
# Largest gap between the boxes of two objects next to each other, as a share of the image's side.
MAX_GAP = 0.1


def order_along(axis: int, things: Sequence[Thing], size: tuple[int, int]) -> list[int] | None:
    """The indices of objects from left to right (axis 0) or from top to bottom (1).

    Each object starts and ends before the next, and their centres are distant; None: one does not.

    Args:
        size: (w, h) of the image.
    """
    starts = [item.box[axis] for item in things]
    ends = [item.box[axis] + item.box[axis + 2] for item in things]
    order = sorted(range(len(things)), key=lambda i: starts[i])
    for i, j in itertools.pairwise(order):
        gaps = (starts[j] - starts[i], ends[j] - ends[i])
        if min(gaps) <= 0 or sum(gaps) / 2 < MIN_DISTANCE * size[axis]:
            return None
    return order


def largest_of(things: Sequence[Thing]) -> int | None:
    """Index of the object that is clearly larger than each of the others."""
    return _first_of_all(things, is_larger)


def smallest_of(things: Sequence[Thing]) -> int | None:
    """Index of the object that is clearly smaller than each of the others."""
    return _first_of_all(things, lambda first, second: is_larger(second, first))


def _first_of_all(things: Sequence[Thing], precedes: Callable[[Thing, Thing], bool]) -> int | None:
    for i, thing in enumerate(things):
        if all(precedes(thing, other) for j, other in enumerate(things) if j != i):
            return i
    return None


def is_larger(first: Thing, second: Thing) -> bool:
    """Whether the first object has a clearly larger box and mask."""
    boxes = first.box[2] * first.box[3], second.box[2] * second.box[3]
    masks = first.area, second.area
    return all(larger >= MIN_AREA_RATIO * smaller for larger, smaller in (boxes, masks))


def are_near(first: Thing, second: Thing, size: tuple[int, int]) -> bool:
    """Whether the boxes touch, or have a small gap between them.

    Args:
        size: (w, h) of the image.
    """
    return all(
        max(first.box[axis], second.box[axis])
        - min(first.box[axis] + first.box[axis + 2], second.box[axis] + second.box[axis + 2])
        <= MAX_GAP * size[axis]
        for axis in (0, 1)
    )
