"""Visual Genome: objects with open-vocabulary names, and regions with a phrase each.

Files ``objects.json``, ``region_descriptions.json`` and ``image_data.json``; the images are in the
two folders of their URLs, ``VG_100K`` and ``VG_100K_2``. Two files are read if they are there:
``object_alias.txt``, Visual Genome's list of names for one object ("motorbike,motor bike"), and
``VG-SGG-dicts-vgoi6-clipped.json``, the 1594 names of VinVL's vocabulary, to which its label maps
of other datasets refer.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from torchvision.ops import generalized_box_iou

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.label_map import read_label_map
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields
from glipv2_d2.text.names import spelling

logger = logging.getLogger(__name__)

UNKNOWN_IMAGE = "images are not in image_data.json and were dropped"
RARE_NAME = "objects had names that are too rare for the vocabulary and were dropped"
EMPTY_REGION = "regions had an empty phrase and were dropped"

ALIASES_FILE = "object_alias.txt"
VOCABULARY_FILE = "VG-SGG-dicts-vgoi6-clipped.json"

# Occurrences of a class of the vocabulary (our choice; about 4000 names have them).
MIN_OCCURRENCES = 50
# Regions of one caption: MDETR joins phrases of different boxes into short captions.
MAX_REGION_GIOU = 0.5
MAX_CAPTION_LENGTH = 250


def register_visual_genome(root: str) -> None:
    """Register ``visual_genome_{objects,regions}``, and both with ``_no_coco``, below ``root``."""
    directory = os.path.join(root, "visual_genome")
    image_data = os.path.join(directory, "image_data.json")
    optional = [os.path.join(directory, name) for name in (ALIASES_FILE, VOCABULARY_FILE)]
    optional = list(filter(os.path.isfile, optional))
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
                source_files=(json_file, image_data, *optional),
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
    """Detection records; the classes are those of VinVL's vocabulary, if its file is there.

    Otherwise they are the frequent object names, most frequent first. The name of an object is the
    first of its ``names``, in lower case. Names of one spelling ("wine glass", "wineglass") and
    aliases are one class, under the most frequent of them.

    Raises:
        ValueError: a file has another form.
    """
    images = read_image_data(image_data, with_coco=with_coco)
    entries = load_json(objects_file)
    names, index_of = _vocabulary(
        (_name(found) for entry in entries for found in entry["objects"]),
        os.path.dirname(image_data),
    )
    MetadataCatalog.get(dataset_name).set(thing_classes=names)
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


def _vocabulary(found: Iterable[str], directory: str) -> tuple[list[str], dict[str, int]]:
    """The class names, and the class of each name that objects have."""
    counts = Counter(filter(None, found))
    alias_of = _read_aliases(os.path.join(directory, ALIASES_FILE))
    names_of = defaultdict(list)
    for name, _ in counts.most_common():
        key = spelling(name)
        names_of[alias_of.get(key, key)].append(name)
    path = os.path.join(directory, VOCABULARY_FILE)
    if os.path.isfile(path):
        numbers = read_label_map(path)
        names = sorted(numbers, key=lambda name: numbers[name])
        # A name of the vocabulary is that class, also where it is another one's alias.
        index_of = {spelling(name): i for i, name in reversed(list(enumerate(names)))}
        keys = {alias_of.get(key, key): i for key, i in index_of.items()}
        return names, {
            name: index
            for key, aliases in names_of.items()
            for name in aliases
            if (index := index_of.get(spelling(name), keys.get(key))) is not None
        }
    totals = {key: sum(counts[name] for name in aliases) for key, aliases in names_of.items()}
    frequent = [k for k in sorted(totals, key=lambda k: -totals[k]) if totals[k] >= MIN_OCCURRENCES]
    return (
        [names_of[key][0] for key in frequent],
        {name: i for i, key in enumerate(frequent) for name in names_of[key]},
    )


def _read_aliases(path: str) -> dict[str, str]:
    """The spelling of each alias -> that of the first of its line; empty without the file."""
    aliases: dict[str, str] = {}
    if not os.path.isfile(path):
        return aliases
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [[spelling(name) for name in line.split(",")] for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not text in UTF-8: {error}") from error
    for first, *others in lines:
        for name in (first, *others):
            aliases.setdefault(name, aliases.get(first, first))
    return aliases


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
