"""Visual Genome: objects with open-vocabulary names, and regions with a phrase each.

Files ``objects.json``, ``region_descriptions.json`` and ``image_data.json``; the images are in the
two folders of their URLs, ``VG_100K`` and ``VG_100K_2``.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from torchvision.ops import generalized_box_iou

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

UNKNOWN_IMAGE = "images are not in image_data.json and were dropped"
RARE_NAME = "objects had names that are too rare for the vocabulary and were dropped"
EMPTY_REGION = "regions had an empty phrase and were dropped"

# Occurrences of a class name of the vocabulary (our choice; about 4000 names have them).
MIN_OCCURRENCES = 50
# Regions of one caption: MDETR joins phrases of different boxes into short captions.
MAX_REGION_GIOU = 0.5
MAX_CAPTION_LENGTH = 250


def register_visual_genome(root: str) -> None:
    """Register ``visual_genome_{objects,regions}``, and both with ``_no_coco``, below ``root``."""
    directory = os.path.join(root, "visual_genome")
    image_data = os.path.join(directory, "image_data.json")
    readers = {
        "objects": (read_objects, os.path.join(directory, "objects.json"), "coco"),
        "regions": (read_regions, os.path.join(directory, "region_descriptions.json"), None),
    }
    for kind, (read, json_file, evaluator) in readers.items():
        for suffix, with_coco in (("", True), ("_no_coco", False)):
            name = f"visual_genome_{kind}{suffix}"
            metadata = {"evaluator_type": evaluator} if evaluator else {}
            register(
                name,
                functools.partial(read, json_file, image_data, name, with_coco=with_coco),
                source_files=(json_file, image_data),
                **metadata,
            )


def read_image_data(image_data: str, *, with_coco: bool) -> dict[int, Record]:
    """Records without annotations, by image id.

    Args:
        with_coco: include the images that are also in COCO, about half of all.
    """
    directory = os.path.dirname(image_data)
    entries = load_json(image_data)
    return {
        entry["image_id"]: {
            # https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg
            "file_name": os.path.join(directory, *entry["url"].split("/")[-2:]),
            "image_id": entry["image_id"],
            "height": entry["height"],
            "width": entry["width"],
            "annotations": [],
        }
        for entry in entries
        if with_coco or entry.get("coco_id") is None
    }


def read_objects(
    objects_file: str, image_data: str, dataset_name: str, *, with_coco: bool
) -> list[Record]:
    """Detection records; the class names are the frequent object names, most frequent first.

    The name of an object is the first of its ``names``, in lower case.
    """
    images = read_image_data(image_data, with_coco=with_coco)
    entries = load_json(objects_file)
    counts = Counter(_name(o) for entry in entries for o in entry["objects"])
    names = [name for name, count in counts.most_common() if name and count >= MIN_OCCURRENCES]
    MetadataCatalog.get(dataset_name).set(thing_classes=names)
    index_of = {name: i for i, name in enumerate(names)}
    faults = Faults()
    for entry in entries:
        record = images.get(entry["image_id"])
        if record is None:
            faults.add(UNKNOWN_IMAGE, entry["image_id"], int(with_coco))
            continue
        for found in entry["objects"]:
            if _name(found) in index_of:
                box = [found["x"], found["y"], found["w"], found["h"]]
                annotation = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
                annotation["category_id"] = index_of[_name(found)]
                record["annotations"].append(annotation)
            else:
                faults.add(RARE_NAME, _name(found))
    # No warning: rare names are expected.
    logger.info("dataset %r: %d class names; %s", dataset_name, len(names), faults)
    return list(images.values())


def _name(found: dict[str, Any]) -> str:
    return " ".join(found["names"][0].split()).lower() if found["names"] else ""


def read_regions(
    regions_file: str, image_data: str, dataset_name: str, *, with_coco: bool
) -> list[Record]:
    """Grounding records whose captions join the phrases of several regions, with their boxes."""
    images = read_image_data(image_data, with_coco=with_coco)
    entries = load_json(regions_file)
    faults = Faults()
    records = []
    for entry in entries:
        image = images.get(entry["id"])
        if image is None:
            faults.add(UNKNOWN_IMAGE, entry["id"], int(with_coco))
            continue
        regions = [region for region in entry["regions"] if region["phrase"].strip()]
        faults.add(EMPTY_REGION, entry["id"], len(entry["regions"]) - len(regions))
        records += [_caption_record(image, group) for group in group_regions(regions)]
    faults.warn(logger, dataset_name)
    return records


def group_regions(regions: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group the regions into captions: within a group boxes differ and the text is short.

    Greedy, in the order of the file. Two phrases of nearly the same box would be false negatives
    of each other.
    """
    boxes = torch.tensor([_xyxy(region) for region in regions], dtype=torch.float64).reshape(-1, 4)
    overlap = generalized_box_iou(boxes, boxes)
    remaining = list(range(len(regions)))
    while remaining:
        group: list[int] = []
        length = 0
        for i in remaining:
            longer = length + len(_sentence(regions[i])) + 1
            fits = not group or longer <= MAX_CAPTION_LENGTH
            if fits and all(overlap[i, j] < MAX_REGION_GIOU for j in group):
                group.append(i)
                length = longer
        yield [regions[i] for i in group]
        taken = set(group)
        remaining = [i for i in remaining if i not in taken]


def _caption_record(image: Record, regions: list[dict[str, Any]]) -> Record:
    caption = ""
    annotations = []
    for region in regions:
        caption += " " if caption else ""
        phrase = region["phrase"].strip().rstrip(".")
        span = [len(caption), len(caption) + len(phrase)]
        caption += _sentence(region)
        annotations.append(
            {"bbox": _xyxy(region), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": [span]}
        )
    return {**image, fields.CAPTION: caption, "annotations": annotations}


def _sentence(region: dict[str, Any]) -> str:
    return region["phrase"].strip().rstrip(".") + "."


def _xyxy(region: dict[str, Any]) -> list[float]:
    x, y = region["x"], region["y"]
    return [x, y, x + region["width"], y + region["height"]]
