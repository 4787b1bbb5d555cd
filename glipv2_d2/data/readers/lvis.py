"""LVIS v1's "minival": the 4809 images of its validation set that are in COCO's validation set.

Detectron2 registers LVIS itself as ``lvis_v1_train`` and ``lvis_v1_val``.
"""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta

# Part of coco_url; the other images have train2017.
MINIVAL_FOLDER = "/val2017/"


def register_lvis_minival(root: str) -> None:
    """Register ``lvis_v1_minival`` below ``root``, with images in COCO's folders."""
    name = "lvis_v1_minival"
    if name not in DatasetCatalog:
        register_lvis_instances(
            name,
            get_lvis_instances_meta(name),
            os.path.join(root, "lvis", "lvis_v1_minival.json"),
            # Detectron2 appends the folder that coco_url names.
            os.path.join(root, "coco", ""),
        )


def minival_subset(lvis_val: dict[str, Any]) -> dict[str, Any]:
    """The content of ``lvis_v1_val.json``, restricted to the images of COCO's validation set.

    This is MDETR's split, on which GLIP is evaluated (from memory): images whose ``coco_url`` is
    in val2017.
    """
    images = [image for image in lvis_val["images"] if MINIVAL_FOLDER in image["coco_url"]]
    kept = {image["id"] for image in images}
    annotations = [a for a in lvis_val["annotations"] if a["image_id"] in kept]
    return {**lvis_val, "images": images, "annotations": annotations}
