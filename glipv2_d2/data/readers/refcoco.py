"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions, with the box of the one referent.

The files are MDETR's, without masks; :mod:`~glipv2_d2.data.readers.refer` reads the originals.
"""

from __future__ import annotations

import functools
import os

from glipv2_d2.data.readers.grounding import read_referring
from glipv2_d2.data.registration import register

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog": ("train", "val", "test"),
}


def register_refcoco(root: str) -> None:
    """Register ``{refcoco,refcoco+,refcocog}_<split>`` below ``root``, on COCO's 2014 images."""
    image_root = os.path.join(root, "coco", "train2014")
    for dataset, splits in SPLITS.items():
        for split in splits:
            name = f"{dataset}_{split}"
            json_file = os.path.join(root, "mdetr_annotations", f"finetune_{name}.json")
            register_referring(name, json_file, image_root, is_train=split == "train")


def register_referring(name: str, json_file: str, image_root: str, *, is_train: bool) -> None:
    """Register a file in MDETR's format whose captions are referring expressions."""
    register(
        name,
        functools.partial(read_referring, json_file, image_root, name, is_train=is_train),
        source_files=(json_file, image_root),
        evaluator_type="refcoco",
    )
