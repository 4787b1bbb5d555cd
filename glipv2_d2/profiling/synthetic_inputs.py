"""Random images with boxes and class names, as inputs of a benchmark."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from glipv2_d2.structures import fields

BOXES_PER_IMAGE = 8
MIN_BOX_SIZE = 8
COLORS = ("black", "blue", "brown", "gray", "green", "orange", "purple", "red", "white", "yellow")


def benchmark_class_names(num_classes: int) -> list[str]:
    """The first names of COCO's 80 object classes, or of LVIS's 1203 classes for larger numbers.

    Beyond them, each colour with each of LVIS's names: "red air conditioner".

    Raises:
        ValueError: ``num_classes`` is out of range.
    """
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    lvis = [category["name"].replace("_", " ") for category in LVIS_CATEGORIES]
    colored = [f"{color} {name}" for color in COLORS for name in lvis]
    names = coco if num_classes <= len(coco) else list(dict.fromkeys(lvis + colored))
    if not 1 <= num_classes <= len(names):
        raise ValueError(f"the number of classes is {num_classes}; it must be 1 to {len(names)}")
    return names[:num_classes]


def random_inputs(
    batch_size: int, image_size: tuple[int, int], class_names: list[str], *, with_masks: bool
) -> list[dict[str, Any]]:
    """Input dicts of random images with random boxes of the first classes.

    Args:
        image_size: (height, width).
        with_masks: add masks, the area of each box.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = image_size
    inputs = []
    for _ in range(batch_size):
        corners = torch.rand(BOXES_PER_IMAGE, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width - MIN_BOX_SIZE, height - MIN_BOX_SIZE])).flatten(1)
        boxes[:, 2:] += MIN_BOX_SIZE
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(BOXES_PER_IMAGE) % len(class_names)
        if with_masks:
            instances.gt_masks = BitMasks(_box_masks(boxes, image_size))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append(
            {fields.IMAGE: image, fields.CLASSES: class_names, fields.INSTANCES: instances}
        )
    return inputs


def _box_masks(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(R, 4) boxes -> (R, H, W) bool, the pixels inside each box."""
    y, x = (torch.arange(size) for size in image_size)
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    in_rows, in_columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return in_rows[:, :, None] & in_columns[:, None]
