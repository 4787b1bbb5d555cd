"""Referring phrases for one of two objects of a class: "the left apple", "the larger dog".

They are derived from the annotations of a split without randomness: every clear relation of a pair
gives two phrases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

# Least distance between two centres along an axis, as a share of the image's side, for one object
# to be the left (upper) one.
MIN_DISTANCE = 0.15
# Least ratio of two areas, of the boxes and of the masks, for one object to be the larger one.
# Both count: an occluded object can have a large box and a small mask.
MIN_AREA_RATIO = 2.0

Annotation = dict[str, Any]


def referring_phrases(
    content: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], str, Annotation]]:
    """The image, phrase and annotation of every phrase, in the order of the file.

    Only classes with exactly two objects in an image have phrases.

    Args:
        content: of a split's file in COCO's format; boxes are XYWH in pixels.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image: defaultdict[int, defaultdict[int, list[Annotation]]]
    by_image = defaultdict(lambda: defaultdict(list))
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]][annotation["category_id"]].append(annotation)
    for image in content["images"]:
        for category, objects in by_image[image["id"]].items():
            if len(objects) != 2:
                continue
            for word, index in distinguishing_words(objects, (image["width"], image["height"])):
                yield image, f"the {word} {names[category]}", objects[index]


def distinguishing_words(
    objects: Sequence[Annotation], size: tuple[int, int]
) -> list[tuple[str, int]]:
    """The words that distinguish two objects, each with the index of the object it refers to.

    Args:
        objects: two annotations, boxes XYWH.
        size: (w, h) of the image.

    >>> apple = {"bbox": [0, 0, 40, 40], "area": 1200}
    >>> distinguishing_words([apple, {"bbox": [60, 5, 30, 40], "area": 900}], (100, 100))
    [('left', 0), ('right', 1)]
    """
    words: list[tuple[str, int]] = []
    for axis, (before, behind) in enumerate((("left", "right"), ("upper", "lower"))):
        first = _first_along(axis, objects, MIN_DISTANCE * size[axis])
        if first is not None:
            words += [(before, first), (behind, 1 - first)]
    larger = _larger(objects)
    if larger is not None:
        words += [("larger", larger), ("smaller", 1 - larger)]
    return words


def _first_along(axis: int, objects: Sequence[Annotation], min_distance: float) -> int | None:
    """Index of the object that starts and ends before the other, with distant centres."""
    starts = [item["bbox"][axis] for item in objects]
    ends = [item["bbox"][axis] + item["bbox"][axis + 2] for item in objects]
    for first, second in ((0, 1), (1, 0)):
        gaps = (starts[second] - starts[first], ends[second] - ends[first])
        if min(gaps) > 0 and sum(gaps) / 2 >= min_distance:
            return first
    return None


def _larger(objects: Sequence[Annotation]) -> int | None:
    """Index of the object with a clearly larger box and mask."""
    masks = [item["area"] for item in objects]
    boxes = [item["bbox"][2] * item["bbox"][3] for item in objects]
    for larger, smaller in ((0, 1), (1, 0)):
        if all(areas[larger] >= MIN_AREA_RATIO * areas[smaller] for areas in (masks, boxes)):
            return larger
    return None


def referring_file(content: dict[str, Any]) -> dict[str, Any]:
    """The phrases of a split in MDETR's form of RefCOCO (field names from its converter).

    An entry of ``images`` is one phrase, its ``caption``, with one annotation: the box and mask of
    the object. ``original_id`` is the id in the file of the split.

    Args:
        content: of the split's file.
    """
    images, annotations = [], []
    for number, (image, phrase, target) in enumerate(referring_phrases(content), start=1):
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
        keys = ("area", "iscrowd", "category_id", "bbox", "segmentation")
        annotations.append(
            {
                **{key: target[key] for key in keys},
                "id": number,
                "image_id": number,
                "original_id": target["id"],
                "tokens_positive": whole,
            }
        )
    return {"images": images, "annotations": annotations, "categories": content["categories"]}
