"""RefCOCO, RefCOCO+ and RefCOCOg: an expression, and the box of the one thing that it means.

Read from MDETR's files. The originals are Python pickles, which can run code when they are opened;
we do not read them.
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
    """``{refcoco,refcoco+,refcocog}_<split>`` below ``root``; images are COCO's of 2014."""
    image_root = os.path.join(root, "coco", "train2014")
    for dataset, splits in SPLITS.items():
        for split in splits:
            name = f"{dataset}_{split}"
            json_file = os.path.join(root, "mdetr_annotations", f"finetune_{name}.json")
            register_referring(name, json_file, image_root, is_train=split == "train")


def register_referring(name: str, json_file: str, image_root: str, *, is_train: bool) -> None:
    """Register a file in MDETR's form whose captions are expressions, read for training or not."""
    register(
        name,
        functools.partial(read_referring, json_file, image_root, name, is_train=is_train),
        source_files=(json_file, image_root),
        evaluator_type="refcoco",
    )
