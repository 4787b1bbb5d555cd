"""MDETR's format of grounding data: COCO's format with a caption per image and spans per box.

MDETR published Flickr30k Entities, the mixed dataset (COCO captions, Visual Genome and GQA,
together "GoldG" with Flickr) and referring expressions in it. An entry of ``images`` is one
image-sentence pair; ``tokens_positive`` of an annotation are the character spans of its phrase in
``caption``, a box of several phrases has the spans of all of them. ``tokens_positive_eval`` of an
image lists the phrases to ground in evaluation. Sizes of images are text in Flickr30k's files.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.coco_fields import parse_id, parse_size
from glipv2_d2.data.coco_truth import sound_annotation
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.coco import box_and_mask, image_record
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.sanitize import caption_labels
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

BOX_OF_OTHER_PHRASE = "boxes belonged to none of the phrases to ground and were dropped"
NO_CATEGORY = -1
NO_PHRASE_WITH_BOX = "captions had no phrase with a box and were dropped"
NO_FOLDER = "images had a data_source without a folder and were dropped"

# Stands for the data_source of an entry without one.
ANY_SOURCE = ""


def register_goldg(root: str) -> None:
    """Register ``flickr30k_{separate,merged}_<split>`` and ``mixed_train{,_no_coco}``.

    Files and folders are laid out below ``root`` as in GLIP's DATA.md.
    """
    annotations = os.path.join(root, "mdetr_annotations")
    for split in ("train", "val", "test"):
        for protocol in ("separate", "merged"):
            register_grounding(
                f"flickr30k_{protocol}_{split}",
                os.path.join(annotations, f"final_flickr_{protocol}GT_{split}.json"),
                flickr30k_images(root, split),
                evaluator_type="flickr30k",
            )
    sources = {
        "coco": os.path.join(root, "coco", "train2014"),
        "vg": os.path.join(root, "gqa", "images"),
    }
    for name in ("mixed_train", "mixed_train_no_coco"):
        register_grounding(name, os.path.join(annotations, f"final_{name}.json"), sources)


def flickr30k_images(root: str, split: str) -> str:
    """The folder of Flickr30k's images: one per split as in GLIP's layout, or one for all."""
    folder = os.path.join(root, "flickr30k", "flickr30k_images")
    per_split = os.path.join(folder, split)
    return per_split if os.path.isdir(per_split) else folder


def register_grounding(
    name: str, json_file: str, image_root: str | Mapping[str, str], **metadata: Any
) -> None:
    """Register a file in MDETR's format.

    Args:
        image_root: the folder of the images, or one per ``data_source`` of the entries.
    """
    roots = {ANY_SOURCE: image_root} if isinstance(image_root, str) else dict(image_root)
    register(
        name,
        functools.partial(read_grounding, json_file, roots, name),
        source_files=(json_file, *roots.values()),
        **metadata,
    )


def register_phrase_boxes(name: str, json_file: str, image_root: str) -> None:
    """Register a file in MDETR's format; evaluation grounds every phrase that has a box."""
    register(
        name,
        functools.partial(read_phrase_boxes, json_file, image_root, name),
        source_files=(json_file, image_root),
        evaluator_type="flickr30k",
    )


def read_phrase_boxes(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """Records for evaluation whose ``phrases`` are all phrases with a box.

    For files without ``tokens_positive_eval``. Captions without a box are dropped.
    """
    faults = Faults()
    records = []
    for record in read_grounding(json_file, {ANY_SOURCE: image_root}, dataset_name):
        phrases, labels = caption_labels(record)
        if not phrases:
            faults.add(NO_PHRASE_WITH_BOX, record["file_name"])
            continue
        record[fields.PHRASES] = phrases
        record["annotations"] = [
            {**annotation, "category_id": label}
            for annotation, label in zip(record["annotations"], labels, strict=True)
            if label is not None
        ]
        records.append(record)
    faults.warn(logger, dataset_name)
    return records


def read_referring(
    json_file: str, image_root: str, dataset_name: str, *, is_train: bool
) -> list[Record]:
    """Records of referring expressions: the caption is the expression, the boxes its referents.

    Args:
        dataset_name: for the report of dropped entries.
        is_train: keep ``tokens_positive`` of the boxes, and use the whole expression for boxes
            without it. Otherwise the whole expression is the only phrase.
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
    """Grounding records of a file in MDETR's format.

    If an image has ``tokens_positive_eval``, its record has ``phrases``, and ``category_id`` of a
    box indexes them.

    Args:
        image_roots: image folder per ``data_source``; "" is the default.
        dataset_name: for the report of dropped entries.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    file = read_annotation_file(json_file)
    annotations_of = file.annotations_of()
    records = []
    for image_id, image in file.images.items():
        folder = image_roots.get(image.get("data_source", ANY_SOURCE), image_roots.get(ANY_SOURCE))
        if folder is None:
            where = f"{image.get('file_name')} ({image.get('data_source')!r})"
            file.faults.add(NO_FOLDER, where)
            continue
        record = image_record(image, folder)
        record[fields.CAPTION] = _caption(image, json_file)
        record |= {key: image[key] for key in ("original_img_id", "sentence_id") if key in image}
        record["annotations"] = []
        for annotation in annotations_of[image_id]:
            sound = sound_annotation(annotation, parse_size(image), file)
            if sound is not None:
                spans = parse_spans(annotation.get("tokens_positive") or [], file.place(annotation))
                # Detectron2's mapper needs a category; that of a box is its phrase in a prompt.
                converted = {**box_and_mask(sound), "category_id": NO_CATEGORY}
                record["annotations"].append({**converted, "tokens_positive": spans})
        if "tokens_positive_eval" in image:
            where = f"image {image_id!r} ({image['file_name']!r}) in {json_file!r}"
            _set_phrases(record, image["tokens_positive_eval"], where, file.faults)
        records.append(record)
    file.faults.warn(logger, dataset_name)
    return records


def _caption(image: Mapping[str, Any], json_file: str) -> str:
    caption = image.get("caption")
    if not isinstance(caption, str):
        raise ValueError(
            f"image {image['id']!r} ({image.get('file_name')!r}) in {json_file!r} has the "
            f"'caption' {caption!r:.80}; it should be text"
        )
    return caption


def parse_spans(value: Any, where: str) -> list[list[int]]:
    """Character spans [[begin, end], ...].

    Raises:
        ValueError: the value is not a list of pairs of whole numbers.
    """
    is_list = isinstance(value, list) and all(
        isinstance(span, list | tuple) and len(span) == 2 for span in value
    )
    spans = [[parse_id(number) for number in span] for span in value] if is_list else [[None]]
    if not all(isinstance(number, int) for span in spans for number in span):
        raise ValueError(
            f"{where} has the spans {value!r:.80}; they should be [[begin, end], ...] in "
            "characters of the caption"
        )
    return spans  # type: ignore[return-value]


def _set_phrases(record: Record, value: Any, where: str, faults: Faults) -> None:
    """Set the phrases of a record, and one annotation per phrase of a box.

    MDETR joins boxes that coincide: ``tokens_positive`` of such a box has the spans of all its
    phrases. A box belongs to each phrase whose spans it has; boxes of no phrase are dropped.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: 'tokens_positive_eval' is {value!r:.80}; it should be a list")
    phrases = [_spans(parse_spans(phrase, where)) for phrase in value]
    record[fields.PHRASES] = [list(phrase) for phrase in phrases]
    annotations = []
    for annotation in record["annotations"]:
        spans = set(_spans(annotation["tokens_positive"]))
        labels = [i for i, phrase in enumerate(phrases) if phrase and spans.issuperset(phrase)]
        if not labels:
            faults.add(BOX_OF_OTHER_PHRASE, record["file_name"])
        annotations += [{**annotation, "category_id": label} for label in labels]
    record["annotations"] = annotations


def _spans(tokens_positive: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((begin, end) for begin, end in tokens_positive)
