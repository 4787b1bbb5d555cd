"""RefCOCO, RefCOCO+ and RefCOCOg: an expression, and the box of the one thing that it means.

Read from MDETR's files. The originals are Python pickles, which can run code when they are opened;
we do not read them.
"""

from __future__ import annotations

import functools
import os

from glipv2_d2.data.readers.grounding import ANY_SOURCE, read_grounding
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields

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
            register(
                name,
                functools.partial(
                    read_referring, json_file, image_root, name, is_train=split == "train"
                ),
                source_files=(json_file, image_root),
                evaluator_type="refcoco",
            )


def read_referring(
    json_file: str, image_root: str, dataset_name: str, *, is_train: bool
) -> list[Record]:
    """Records whose caption is the expression.

    Args:
        dataset_name: for the report.
        is_train: boxes show what ``tokens_positive`` says, those without show the whole
            expression. Else the whole expression is the one phrase that is asked.
    """
    records = read_grounding(json_file, {ANY_SOURCE: image_root}, dataset_name)
    for record in records:
        whole = (0, len(record[fields.CAPTION]))
        for annotation in record["annotations"]:
            if is_train:
                annotation["tokens_positive"] = annotation["tokens_positive"] or [list(whole)]
            else:
                annotation["category_id"] = 0
        if not is_train:
            record[fields.PHRASES] = [[whole]]
    return records
