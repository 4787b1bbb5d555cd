"""COCO's format, and functions shared with formats derived from it.

Detectron2's ``load_coco_json`` raises an error at the first unusable annotation. Datasets from the
web have a few among millions, so this reader drops, counts and logs them. Detectron2 registers and
loads COCO and LVIS themselves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.registration import Record, register

logger = logging.getLogger(__name__)

UNKNOWN_CATEGORY = "annotations had a category_id that is not in the file's categories"
UNUSABLE_BOX = "annotations had no bbox of four numbers"
UNKNOWN_IMAGE = "annotations had an image_id that is not in the file's images"
REPEATED_IMAGE = "image ids occurred more than once"

NUM_BOX_NUMBERS = 4
# x and y of three points.
MIN_POLYGON_NUMBERS = 6


def register_coco(name: str, json_file: str, image_root: str, **metadata: Any) -> None:
    """Register a dataset in COCO's format. Loading it sets its class names."""
    register(
        name,
        functools.partial(read_coco, json_file, image_root, name),
        source_files=(json_file, image_root),
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        **metadata,
    )


def read_coco(
    json_file: str,
    image_root: str,
    dataset_name: str,
    *,
    class_names: Sequence[str] | None = None,
    path_of: Callable[[str, str], str] = os.path.join,
) -> list[Record]:
    """Records of a file in COCO's format.

    Sets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` in the dataset's metadata.

    Args:
        class_names: names of the categories 1, 2, 3 ..., in place of the file's categories.
        path_of: (image root, ``file_name`` in the file) -> path of the image.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    coco = open_coco(json_file)
    if class_names is None:
        categories = sorted(coco.dataset.get("categories", ()), key=lambda c: c["id"])
    else:
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    if not categories:
        raise ValueError(f"{json_file!r} lists no 'categories', so its boxes have no class names")
    index_of = {category["id"]: i for i, category in enumerate(categories)}
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=index_of,
    )
    faults = image_faults(coco)
    records = []
    for image_id in sorted(coco.imgs):
        image = coco.imgs[image_id]
        record = image_record(image, image_root, path_of)
        for annotation in coco.imgToAnns.get(image_id, ()):
            category = index_of.get(annotation.get("category_id"))
            converted = convert_annotation(annotation)
            if category is None:
                faults.add(UNKNOWN_CATEGORY, record["file_name"])
            elif converted is None:
                faults.add(UNUSABLE_BOX, record["file_name"])
            else:
                record["annotations"].append({**converted, "category_id": category})
        records.append(record)
    faults.warn(logger, dataset_name)
    return records


def open_coco(json_file: str) -> COCO:
    """Load and index a file with pycocotools, without its printed messages.

    Raises:
        ValueError: the file is not JSON, or not in COCO's format.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(json_file)
        if not isinstance(coco.dataset["images"], list):
            raise TypeError("'images' is not a list")
        return coco
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{json_file!r} is not in COCO's format ({type(error).__name__}: {error}): it should "
            "be a JSON object with the lists images, annotations and categories"
        ) from error


def image_faults(coco: COCO) -> Faults:
    """Count images that are listed twice, and annotations of images that are not listed."""
    faults = Faults()
    for image_id, count in Counter(image["id"] for image in coco.dataset["images"]).items():
        faults.add(REPEATED_IMAGE, image_id, count - 1)
    for image_id, of_image in coco.imgToAnns.items():
        if image_id not in coco.imgs:
            faults.add(UNKNOWN_IMAGE, f"image id {image_id}", len(of_image))
    return faults


def image_record(
    image: dict[str, Any],
    image_root: str,
    path_of: Callable[[str, str], str] = os.path.join,
) -> Record:
    """The record of an entry of ``images``, without annotations, and with its size if known.

    Raises:
        ValueError: the entry has no file name.
    """
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(
            f"image {image['id']!r} has the 'file_name' {file_name!r}: it should be its path below "
            f"{image_root!r}"
        )
    return {
        "file_name": path_of(image_root, file_name),
        "image_id": image["id"],
        **{key: image[key] for key in ("height", "width") if key in image},
        "annotations": [],
    }


def convert_annotation(annotation: dict[str, Any]) -> dict[str, Any] | None:
    """The box (XYWH), crowd flag and mask of an entry of ``annotations``.

    A box with ``ignore`` counts as a crowd, so training drops it.

    Returns:
        None without a box of four numbers.
    """
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != NUM_BOX_NUMBERS:
        return None
    if not all(isinstance(number, int | float) for number in box):
        return None
    converted = {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": int(bool(annotation.get("iscrowd", 0) or annotation.get("ignore", 0))),
    }
    segmentation = convert_segmentation(annotation.get("segmentation"))
    if segmentation:
        converted["segmentation"] = segmentation
    return converted


def convert_segmentation(segmentation: Any) -> list[list[float]] | dict[str, Any] | None:
    """The polygons of at least three points, or the compressed RLE; None without either."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [
        polygon
        for polygon in segmentation or ()
        if len(polygon) % 2 == 0 and len(polygon) >= MIN_POLYGON_NUMBERS
    ]
    return polygons or None
