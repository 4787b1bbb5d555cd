"""Few-shot splits: a seeded subset of the images of a dataset in COCO format."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

SHOTS = (1, 3, 5, 10)
SEEDS = (3, 30, 300)
"""The values of GLIP's few-shot table (GLIP paper, E.3)."""

COPIES = {1: 8, 3: 4, 5: 2, 10: 1}
"""Shots -> repetitions of each image in an epoch (GLIP paper, E.3)."""


def few_shot_subset(coco: dict[str, Any], *, shots: int, seed: int) -> dict[str, Any]:
    """Sample images so that each class has at least ``shots`` of them.

    Images are visited in a seeded random order; one is added if it has a class with fewer than
    ``shots`` images so far (the released code's rule). A class may get more images, added for
    rarer classes; a class with fewer images than ``shots`` gets all of them. Crowd annotations are
    ignored.

    Args:
        coco: contents of an annotation file; not modified.

    Returns:
        The contents with only the sampled images and their annotations.

    Raises:
        ValueError: ``shots`` is less than 1, or no image has an annotation.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; it must be at least 1")
    classes_of: dict[Any, set[Any]] = defaultdict(set)
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd", 0):
            classes_of[annotation["image_id"]].add(annotation["category_id"])
    # Sorted, so that the sample does not depend on the order of the file.
    image_ids = sorted({image["id"] for image in coco["images"]} & classes_of.keys())
    if not image_ids:
        raise ValueError("no image has an annotation: there is nothing to train on")
    counts: Counter[Any] = Counter()
    chosen = set()
    for index in np.random.default_rng(seed).permutation(len(image_ids)).tolist():
        classes = classes_of[image_ids[index]]
        if any(counts[c] < shots for c in classes):
            chosen.add(image_ids[index])
            counts.update(classes)
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] in chosen],
        "annotations": [a for a in coco["annotations"] if a["image_id"] in chosen],
    }
