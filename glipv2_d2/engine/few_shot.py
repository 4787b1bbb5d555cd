"""Few-shot splits: some images of a data set in COCO's format, chosen by a seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

SHOTS = (1, 3, 5, 10)
SEEDS = (3, 30, 300)
"""Those of GLIP's few-shot table (GLIP paper, E.3)."""

COPIES = {1: 8, 3: 4, 5: 2, 10: 1}
"""Shots -> how often an epoch shows each image (GLIP paper, E.3)."""


def few_shot_subset(coco: dict[str, Any], *, shots: int, seed: int) -> dict[str, Any]:
    """The data set reduced to images that show each class in at least ``shots`` images.

    Images come in an order that the seed gives, and one is taken when it shows a class of which
    there are fewer than ``shots`` so far: the released code's rule. A class may be seen more often,
    beside rarer ones; one with fewer images than ``shots`` is seen in all of them. Crowds count as
    nothing.

    Args:
        coco: content of an annotation file; left as it is.

    Raises:
        ValueError: ``shots`` is less than 1, or no image has an annotation.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; give at least 1")
    classes_of: dict[Any, set[Any]] = defaultdict(set)
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd", 0):
            classes_of[annotation["image_id"]].add(annotation["category_id"])
    # Sorted, so that the choice does not depend on the order of the file.
    image_ids = sorted({image["id"] for image in coco["images"]} & classes_of.keys())
    if not image_ids:
        raise ValueError("no image has an annotation: there is nothing to learn from")
    seen: Counter[Any] = Counter()
    chosen = set()
    for index in np.random.default_rng(seed).permutation(len(image_ids)).tolist():
        classes = classes_of[image_ids[index]]
        if any(seen[c] < shots for c in classes):
            chosen.add(image_ids[index])
            seen.update(classes)
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] in chosen],
        "annotations": [a for a in coco["annotations"] if a["image_id"] in chosen],
    }
