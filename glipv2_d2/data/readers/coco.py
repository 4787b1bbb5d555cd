"""COCO's format: records of the truth that :mod:`glipv2_d2.data.coco_truth` reads.

Detectron2's ``load_coco_json`` raises an error at the first unusable annotation, and evaluation
reads the file again. Datasets from the web have a few unusable entries among millions, so they are
dropped, counted and logged, in training and evaluation alike. Detectron2 registers COCO itself;
:func:`register_coco_builtin` replaces its loader.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from glipv2_d2.data.coco_truth import CocoTruth, read_truth
from glipv2_d2.data.registration import Record, register, replace_loader

logger = logging.getLogger(__name__)


def register_coco_builtin() -> None:
    """Load the instances of COCO, which Detectron2 registers, with :func:`read_coco`."""
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if name.startswith("coco_") and metadata.get("evaluator_type") == "coco":
            load = functools.partial(read_coco, metadata.json_file, metadata.image_root, name)
            replace_loader(name, load)


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
        ValueError: the file is not in COCO's format, or has no categories.
    """
    truth = read_truth(json_file, class_names=class_names)
    if not truth.categories:
        raise ValueError(f"{json_file!r} lists no 'categories', so its boxes have no class names")
    index_of = index_of_category(truth)
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[category["name"] for category in truth.categories],
        thing_dataset_id_to_contiguous_id=index_of,
    )
    truth.faults.warn(logger, dataset_name)
    return [
        {
            **image_record(image, image_root, path_of),
            "annotations": detection_annotations(truth.annotations_of[image_id], index_of),
        }
        for image_id, image in truth.images.items()
    ]


def index_of_category(truth: CocoTruth) -> dict[int, int]:
    """Category id -> class index, in ascending order."""
    return {category["id"]: i for i, category in enumerate(truth.categories)}


def detection_annotations(
    annotations: Iterable[Mapping[str, Any]], index_of: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Sound annotations as a record has them.

    Args:
        index_of: category id -> class index.
    """
    return [{**box_and_mask(a), "category_id": index_of[a["category_id"]]} for a in annotations]


def box_and_mask(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """The box, crowd flag and mask of a sound annotation as a record has them."""
    kept = {
        key: annotation[key] for key in ("bbox", "iscrowd", "segmentation") if key in annotation
    }
    return {**kept, "bbox_mode": BoxMode.XYWH_ABS}


def image_record(
    image: Mapping[str, Any],
    image_root: str,
    path_of: Callable[[str, str], str] = os.path.join,
) -> Record:
    """The record of an entry of ``images``, without annotations, and with its size if known.

    Raises:
        ValueError: the entry has no file name.
    """
    file_name = file_name_of(image, image_root)
    return {
        "file_name": path_of(image_root, file_name),
        "image_id": image["id"],
        **{key: image[key] for key in ("height", "width") if key in image},
    }


def file_name_of(image: Mapping[str, Any], where: str) -> str:
    """The ``file_name`` of an entry of ``images``; backslashes, as of Windows, become slashes.

    Args:
        where: the folder of the images or the annotation file, for the message.

    Raises:
        ValueError: the entry has none.
    """
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(
            f"image {image['id']!r} has the 'file_name' {file_name!r:.80}: it should be its path "
            f"below the image folder ({where!r})"
        )
    return file_name.replace("\\", "/")
