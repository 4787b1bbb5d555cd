"""LVIS, and its "minival": the 4809 images of its validation set that are in COCO's.

Detectron2 registers ``lvis_v1_train`` and ``lvis_v1_val`` with a loader of its own, which
:func:`register_lvis` replaces, so that training reads what the evaluation reads.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from glipv2_d2.data.coco_fields import Id
from glipv2_d2.data.coco_truth import CocoTruth, read_truth
from glipv2_d2.data.readers.coco import detection_annotations, image_record, index_of_category
from glipv2_d2.data.registration import Record, replace_loader

logger = logging.getLogger(__name__)

# Part of coco_url; the other images have train2017.
MINIVAL_FOLDER = "/val2017/"
SPLITS = ("train", "val", "minival")
FREQUENCIES = ("r", "c", "f")


def register_lvis(root: str) -> None:
    """Register ``lvis_v1_{train,val,minival}`` below ``root``, with images in COCO's folders."""
    for split in SPLITS:
        name = f"lvis_v1_{split}"
        json_file = os.path.join(root, "lvis", f"{name}.json")
        image_root = os.path.join(root, "coco")
        load = functools.partial(read_lvis, json_file, image_root, name)
        if name in DatasetCatalog:
            replace_loader(name, load)
        else:
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(
                json_file=json_file,
                image_root=image_root,
                evaluator_type="lvis",
                **get_lvis_instances_meta(name),
            )


def read_lvis(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """Records of a file in LVIS's format; class i is the category with the i-th lowest id.

    Args:
        image_root: contains the folders that ``coco_url`` names, ``train2017`` and ``val2017``.
        dataset_name: for the report of dropped entries.
    """
    truth = read_lvis_truth(json_file)
    index_of = index_of_category(truth)
    truth.faults.warn(logger, dataset_name)
    return [
        {
            **image_record({**image, "file_name": _path_in_coco(image, json_file)}, image_root),
            "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
            "neg_category_ids": image["neg_category_ids"],
            "annotations": detection_annotations(truth.annotations_of[image_id], index_of),
        }
        for image_id, image in truth.images.items()
    ]


def read_lvis_truth(json_file: str) -> CocoTruth:
    """The truth of a file in LVIS's format, with the fields that its evaluation needs.

    Raises:
        ValueError: a category has no frequency, or an image invalid lists of categories.
    """
    truth = read_truth(json_file)
    for category in truth.categories:
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"{json_file!r} is not in LVIS's format: the category {category['name']!r} has "
                f"the frequency {category.get('frequency')!r:.80}; it should be one of "
                f"{FREQUENCIES}"
            )
    return CocoTruth(
        **{
            **vars(truth),
            "images": {
                image_id: {
                    **image,
                    **{
                        key: _category_ids(image, key, json_file)
                        for key in ("neg_category_ids", "not_exhaustive_category_ids")
                    },
                }
                for image_id, image in truth.images.items()
            },
        }
    )


def _category_ids(image: dict[str, Any], key: str, json_file: str) -> list[Id]:
    given = image.get(key)
    given = [] if given is None else given
    if not isinstance(given, list) or not all(type(number) is int for number in given):
        raise ValueError(
            f"image {image['id']!r} in {json_file!r} has the {key!r} {given!r:.80}; it should be "
            "a list of category ids"
        )
    return given


def _path_in_coco(image: dict[str, Any], json_file: str) -> str:
    """The folder and file that ``coco_url`` names, such as "train2017/000000155379.jpg"."""
    url = image.get("coco_url")
    if not isinstance(url, str) or url.count("/") < 1:
        raise ValueError(
            f"image {image['id']!r} in {json_file!r} has the 'coco_url' {url!r:.80}; it should end "
            "in its folder and file, such as 'train2017/000000155379.jpg'"
        )
    return os.path.join(*url.split("/")[-2:])


def minival_subset(lvis_val: dict[str, Any]) -> dict[str, Any]:
    """The content of ``lvis_v1_val.json``, restricted to the images of COCO's validation set.

    This is MDETR's split, on which GLIP is evaluated (from memory): images whose ``coco_url`` is
    in val2017.
    """
    images = [image for image in lvis_val["images"] if MINIVAL_FOLDER in image["coco_url"]]
    kept = {image["id"] for image in images}
    annotations = [a for a in lvis_val["annotations"] if a["image_id"] in kept]
    return {**lvis_val, "images": images, "annotations": annotations}
