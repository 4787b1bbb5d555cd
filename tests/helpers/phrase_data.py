"""Grounding records, and outputs of a model for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

SIZE = (24, 32)
"""(height, width) of every image."""

Box = Sequence[float]


def record(
    image_id: Any,
    truth: dict[str, Sequence[Box]],
    *,
    masks: dict[str, Sequence[Any]] | None = None,
    kinds: dict[str, Sequence[str]] | None = None,
    is_crowd: bool = False,
) -> dict[str, Any]:
    """A record whose caption is the sequence of its phrases.

    Args:
        truth: phrase -> boxes, XYXY.
        masks: phrase -> COCO's segmentation of each box.
        kinds: phrase -> its phrase types.
    """
    caption, phrases, annotations = "", [], []
    for label, (phrase, boxes) in enumerate(truth.items()):
        phrases.append([(len(caption), len(caption) + len(phrase))])
        caption += f"{phrase} "
        for i, box in enumerate(boxes):
            annotation = {
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": label,
                "iscrowd": int(is_crowd),
            }
            if masks is not None:
                annotation["segmentation"] = masks[phrase][i]
            annotations.append(annotation)
    made = {
        "file_name": f"{image_id}.jpg",
        "image_id": image_id,
        "height": SIZE[0],
        "width": SIZE[1],
        "caption": caption,
        "phrases": phrases,
        "annotations": annotations,
    }
    if kinds is not None:
        made["phrase_types"] = [kinds[phrase] for phrase in truth]
    return made


def model_output(
    boxes: Sequence[Box],
    scores: Sequence[float],
    labels: Sequence[int],
    masks: np.ndarray | None = None,
) -> dict[str, Any]:
    """The output of a model for a caption. ``masks``: (K, H, W) bool."""
    instances = Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(labels, dtype=torch.int64),
    )
    if masks is not None:
        instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances, "phrases": ["the phrases"]}


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, 4) XYXY boxes on a coarse grid, some of them equal."""
    corners = rng.integers(0, [5, 4], (number, 2))
    sizes = rng.integers(2, [8, 6], (number, 2))
    return np.concatenate([corners * 2.5, (corners + sizes) * 2.5], axis=1)


def random_masks(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, H, W) bool masks, each a rectangle with holes."""
    masks = np.zeros((number, *SIZE), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, random_boxes(rng, number).astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks & (rng.random(masks.shape) < 0.9)
