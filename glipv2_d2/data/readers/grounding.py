"""MDETR's form of grounding data: COCO's, with a caption per image and spans per box.

MDETR published Flickr30k Entities, the mixed set (COCO captions, Visual Genome and GQA, together
"GoldG" with Flickr) and referring expressions in it. An entry of ``images`` is one pair of image
and sentence; ``tokens_positive`` of an annotation are its characters of ``caption``. In files for
evaluation ``tokens_positive_eval`` of an image lists the phrases that are asked.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.coco import (
    UNUSABLE_BOX,
    convert_annotation,
    faults_of_images,
    image_record,
    open_coco,
)
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.sanitize import caption_labels
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

BOX_OF_NO_PHRASE = "boxes were of none of the phrases that are asked"
NOTHING_ASKED = "captions had no phrase with a box and were left out"
NO_FOLDER = "images had a data_source without a folder"

# The value of data_source where an entry has none.
ANY_SOURCE = ""


def register_goldg(root: str) -> None:
    """``flickr30k_{separate,merged}_<split>`` and ``mixed_train``, ``mixed_train_no_coco``.

    Files and folders lie below ``root`` as GLIP's data page has them.
    """
    annotations = os.path.join(root, "mdetr_annotations")
    for split in ("train", "val", "test"):
        for protocol in ("separate", "merged"):
            register_grounding(
                f"flickr30k_{protocol}_{split}",
                os.path.join(annotations, f"final_flickr_{protocol}GT_{split}.json"),
                os.path.join(root, "flickr30k", "flickr30k_images", split),
                evaluator_type="flickr30k",
            )
    sources = {
        "coco": os.path.join(root, "coco", "train2014"),
        "vg": os.path.join(root, "gqa", "images"),
    }
    for name in ("mixed_train", "mixed_train_no_coco"):
        register_grounding(name, os.path.join(annotations, f"final_{name}.json"), sources)


def register_grounding(
    name: str, json_file: str, image_root: str | Mapping[str, str], **metadata: Any
) -> None:
    """Register a file in MDETR's form.

    Args:
        image_root: the folder of the images, or one for each ``data_source`` of the entries.
    """
    roots = {ANY_SOURCE: image_root} if isinstance(image_root, str) else dict(image_root)
    register(
        name,
        functools.partial(read_grounding, json_file, roots, name),
        source_files=(json_file, *roots.values()),
        **metadata,
    )


def register_described_boxes(name: str, json_file: str, image_root: str) -> None:
    """Register a file in MDETR's form whose phrases with boxes are all asked in evaluation."""
    register(
        name,
        functools.partial(read_described_boxes, json_file, image_root, name),
        source_files=(json_file, image_root),
        evaluator_type="flickr30k",
    )


def read_described_boxes(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """Records in which every phrase that has a box is asked; captions without any are left out.

    For files that do not say what is asked, such as those of composed scenes.
    """
    faults = Faults()
    asked = []
    for record in read_grounding(json_file, {ANY_SOURCE: image_root}, dataset_name):
        phrases, labels = caption_labels(record)
        if not phrases:
            faults.add(NOTHING_ASKED, record["file_name"])
            continue
        record[fields.PHRASES] = phrases
        record["annotations"] = [
            {**annotation, "category_id": label}
            for annotation, label in zip(record["annotations"], labels, strict=True)
            if label is not None
        ]
        asked.append(record)
    faults.warn(logger, dataset_name)
    return asked


def read_referring(
    json_file: str, image_root: str, dataset_name: str, *, is_train: bool
) -> list[Record]:
    """Records whose caption is an expression or phrase that all of their boxes show.

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


def read_grounding(
    json_file: str, image_roots: Mapping[str, str], dataset_name: str
) -> list[Record]:
    """Records with captions.

    Where the file says what is asked (``tokens_positive_eval``), records have ``phrases``, and a
    box's ``category_id`` indexes them.

    Args:
        image_roots: per ``data_source``; that of "" holds for every other one.
        dataset_name: for the report.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    coco = open_coco(json_file)
    faults = faults_of_images(coco)
    records = []
    for image_id in sorted(coco.imgs):
        image = coco.imgs[image_id]
        folder = image_roots.get(image.get("data_source", ANY_SOURCE), image_roots.get(ANY_SOURCE))
        if folder is None:
            faults.add(NO_FOLDER, f"{image['file_name']} ({image.get('data_source')!r})")
            continue
        record = image_record(image, folder)
        record[fields.CAPTION] = image["caption"]
        record |= {key: image[key] for key in ("original_img_id", "sentence_id") if key in image}
        for annotation in coco.imgToAnns.get(image_id, ()):
            converted = convert_annotation(annotation)
            if converted is None:
                faults.add(UNUSABLE_BOX, record["file_name"])
                continue
            converted["tokens_positive"] = annotation.get("tokens_positive") or []
            record["annotations"].append(converted)
        if "tokens_positive_eval" in image:
            _ask_phrases(record, image["tokens_positive_eval"], faults)
        records.append(record)
    faults.warn(logger, dataset_name)
    return records


def _ask_phrases(record: Record, phrases: list[list[list[int]]], faults: Faults) -> None:
    """Say what is asked, and number the boxes by it; boxes of other words are left out."""
    index_of = {_spans(phrase): i for i, phrase in enumerate(phrases)}
    record[fields.PHRASES] = [list(_spans(phrase)) for phrase in phrases]
    asked = []
    for annotation in record["annotations"]:
        label = index_of.get(_spans(annotation["tokens_positive"]))
        if label is None:
            faults.add(BOX_OF_NO_PHRASE, record["file_name"])
        else:
            asked.append({**annotation, "category_id": label})
    record["annotations"] = asked


def _spans(tokens_positive: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((begin, end) for begin, end in tokens_positive)
