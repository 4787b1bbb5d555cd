"""Objects365, versions 1 and 2, in COCO's format; images of version 2 are in patch folders."""

from __future__ import annotations

import functools
import os

from glipv2_d2.data.readers.coco import read_coco, register_coco
from glipv2_d2.data.registration import register

# Path components of an image below the image root: patch folder and file.
PATCH_DEPTH = 2


def register_objects365(root: str) -> None:
    """Register ``objects365_{v1,v2}_{train,val}`` below ``root``."""
    v1 = os.path.join(root, "objects365_v1")
    v2 = os.path.join(root, "objects365_v2")
    for split in ("train", "val"):
        register_coco(
            f"objects365_v1_{split}",
            os.path.join(v1, "annotations", f"objects365_{split}.json"),
            os.path.join(v1, split),
        )
        name = f"objects365_v2_{split}"
        json_file = os.path.join(v2, "annotations", f"zhiyuan_objv2_{split}.json")
        image_root = os.path.join(v2, split)
        register(
            name,
            functools.partial(read_coco, json_file, image_root, name, path_of=path_in_patch),
            source_files=(json_file, image_root),
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
        )


def path_in_patch(image_root: str, file_name: str) -> str:
    """The path of an image of version 2: its patch folder and file below the image root.

    >>> path_in_patch("train", "images/v1/patch8/objects365_v1_00420917.jpg")
    'train/patch8/objects365_v1_00420917.jpg'
    """
    return os.path.join(image_root, *file_name.split("/")[-PATCH_DEPTH:])
