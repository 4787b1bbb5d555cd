"""PhraseCut: phrases, with the boxes and polygons of every region that a phrase refers to.

Files ``refer_{train,val,test,miniv}.json`` of the dataset's own release, with Visual Genome's
images and ``image_data.json``; or MDETR's ``finetune_phrasecut_*.json``, which GLIP uses. MDETR
joined the polygons of an instance to one; they cannot be separated, so its masks have an area
between distant parts.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from detectron2.structures import BoxMode

from glipv2_d2.data.coco_fields import Size, parse_segmentation, parse_size
from glipv2_d2.data.coco_truth import UNUSABLE_MASK
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.readers.grounding import read_referring
from glipv2_d2.data.readers.visual_genome import UNKNOWN_IMAGE, read_image_data
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "miniv")

EMPTY_PHRASE = "phrases were empty and were dropped"


def register_phrasecut(root: str) -> None:
    """Register ``phrasecut_{train,val,test,miniv}`` and ``phrasecut_mdetr_<split>``."""
    image_data = os.path.join(root, "visual_genome", "image_data.json")
    for split in SPLITS:
        name = f"phrasecut_{split}"
        json_file = os.path.join(root, "phrasecut", f"refer_{split}.json")
        register(
            name,
            functools.partial(read_phrasecut, json_file, image_data, name),
            source_files=(json_file, image_data),
            evaluator_type="phrasecut",
        )
    image_root = os.path.join(root, "gqa", "images")
    for split in SPLITS:
        name = f"phrasecut_mdetr_{split}"
        json_file = os.path.join(root, "mdetr_annotations", f"finetune_phrasecut_{split}.json")
        register(
            name,
            functools.partial(
                read_referring, json_file, image_root, name, is_train=split == "train"
            ),
            source_files=(json_file, image_root),
            evaluator_type="phrasecut",
        )


def read_phrasecut(json_file: str, image_data: str, dataset_name: str) -> list[Record]:
    """One record per phrase, which is the caption of the record and its only phrase.

    ``image_id`` is the file's ``task_id``, because an image has many phrases.
    """
    images = read_image_data(image_data, with_coco=True)
    tasks = load_json(json_file)
    faults = Faults()
    records = []
    for task in tasks:
        image = images.get(task["image_id"])
        phrase = task["phrase"].strip()
        if image is None:
            faults.add(UNKNOWN_IMAGE, task["image_id"])
        elif not phrase:
            faults.add(EMPTY_PHRASE, task["task_id"])
        else:
            records.append(
                {
                    **image,
                    "image_id": task["task_id"],
                    fields.CAPTION: phrase,
                    fields.PHRASES: [[(0, len(phrase))]],
                    "annotations": _annotations(task, parse_size(image), faults),
                }
            )
    faults.warn(logger, dataset_name)
    return records


def _annotations(task: dict[str, Any], size: Size | None, faults: Faults) -> list[dict[str, Any]]:
    annotations = []
    for box, polygons in zip(task["instance_boxes"], task["Polygons"], strict=True):
        annotation = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        segmentation, _ = parse_segmentation(polygons, size)
        if segmentation is None:
            faults.add(UNUSABLE_MASK, task["task_id"])
        else:
            annotation["segmentation"] = segmentation
        annotations.append(annotation)
    return annotations
