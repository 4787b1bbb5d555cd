"""Phrases that tell two things of one name apart: "the left apple", "the larger dog".

They follow from the finished annotations of a split, so that its pictures stay as they are, and
nothing about them is random: every clear relation of every pair gives two phrases. What is not
clear at a glance gives none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

# How far apart the centres of two things are, as a share of the image's side, for one to be the
# left (the upper) one.
MIN_DISTANCE = 0.15
# How many times the area of the other, as box and as mask, a thing has to be the larger one: it is
# 1.4 times as wide and high. A thing that is covered by another can have a large box and a small
# mask; then nobody can say which is larger.
MIN_AREA_RATIO = 2.0

Annotation = dict[str, Any]


def referring_phrases(
    content: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], str, Annotation]]:
    """The image, phrase and annotation of every phrase, in the order of the file.

    Names that an image shows exactly twice are asked; of three apples one is not "the left" one.

    Args:
        content: of a split's file in COCO's format; boxes are XYWH in pixels.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image: defaultdict[int, defaultdict[int, list[Annotation]]]
    by_image = defaultdict(lambda: defaultdict(list))
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]][annotation["category_id"]].append(annotation)
    for image in content["images"]:
        for category, things in by_image[image["id"]].items():
            if len(things) != 2:
                continue
            for word, meant in telling_words(things, (image["width"], image["height"])):
                yield image, f"the {word} {names[category]}", things[meant]


def telling_words(things: Sequence[Annotation], size: tuple[int, int]) -> list[tuple[str, int]]:
    """The words that tell two things apart, each with the index of the one that it means.

    Args:
        things: two annotations, boxes XYWH.
        size: (w, h) of the image.

    >>> apple = {"bbox": [0, 0, 40, 40], "area": 1200}
    >>> telling_words([apple, {"bbox": [60, 5, 30, 40], "area": 900}], (100, 100))
    [('left', 0), ('right', 1)]
    """
    words: list[tuple[str, int]] = []
    for axis, (before, behind) in enumerate((("left", "right"), ("upper", "lower"))):
        first = _first_along(axis, things, MIN_DISTANCE * size[axis])
        if first is not None:
            words += [(before, first), (behind, 1 - first)]
    larger = _larger(things)
    if larger is not None:
        words += [("larger", larger), ("smaller", 1 - larger)]
    return words


def _first_along(axis: int, things: Sequence[Annotation], min_distance: float) -> int | None:
    """Which of two things begins and ends before the other, with centres that far apart."""
    begins = [thing["bbox"][axis] for thing in things]
    ends = [thing["bbox"][axis] + thing["bbox"][axis + 2] for thing in things]
    for first, second in ((0, 1), (1, 0)):
        gaps = (begins[second] - begins[first], ends[second] - ends[first])
        if min(gaps) > 0 and sum(gaps) / 2 >= min_distance:
            return first
    return None


def _larger(things: Sequence[Annotation]) -> int | None:
    """Which of two things is clearly larger, as box and as mask."""
    masks = [thing["area"] for thing in things]
    boxes = [thing["bbox"][2] * thing["bbox"][3] for thing in things]
    for larger, smaller in ((0, 1), (1, 0)):
        if all(areas[larger] >= MIN_AREA_RATIO * areas[smaller] for areas in (masks, boxes)):
            return larger
    return None


def referring_file(content: dict[str, Any]) -> dict[str, Any]:
    """The phrases of a split in the form that MDETR gave RefCOCO (field names from its converter).

    An entry of ``images`` is one phrase, its ``caption``; its one annotation is the thing that it
    means, with box and mask. ``original_id`` is the id in the split's own file.

    Args:
        content: of the split's file.
    """
    images, annotations = [], []
    for number, (image, phrase, meant) in enumerate(referring_phrases(content), start=1):
        whole = [[0, len(phrase)]]
        images.append(
            {
                **{key: image[key] for key in ("file_name", "height", "width")},
                "id": number,
                "original_id": image["id"],
                "caption": phrase,
                "dataset_name": "scenes",
                "tokens_negative": whole,
            }
        )
        thing_keys = ("area", "iscrowd", "category_id", "bbox", "segmentation")
        annotations.append(
            {
                **{key: meant[key] for key in thing_keys},
                "id": number,
                "image_id": number,
                "original_id": meant["id"],
                "tokens_positive": whole,
            }
        )
    return {"images": images, "annotations": annotations, "categories": content["categories"]}
