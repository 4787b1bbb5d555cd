"""Flickr30k Entities as captions with the boxes of their phrases (MDETR's separate files).

In training a record has one sentence with its boxes. In evaluation it has all sentences of an image
as references, and the boxes of all their phrases, in one text.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from glipv2_d2.data.readers.grounding import ANY_SOURCE, flickr30k_images, read_grounding
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields


def register_flickr30k_captions(root: str) -> None:
    """Register ``flickr30k_grounded_captions_{train,val,test}`` below ``root``."""
    for split in ("train", "val", "test"):
        name = f"flickr30k_grounded_captions_{split}"
        json_file = os.path.join(root, "mdetr_annotations", f"final_flickr_separateGT_{split}.json")
        images = flickr30k_images(root, split)
        read = read_sentences if split == "train" else read_images
        register(
            name,
            functools.partial(read, json_file, images, name),
            source_files=(json_file, images),
            evaluator_type="grounded_captions",
        )


def read_sentences(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per sentence, which is also its target caption; errors as read_grounding."""
    records = read_grounding(json_file, {ANY_SOURCE: image_root}, dataset_name)
    for record in records:
        record[fields.TARGET_CAPTIONS] = [record[fields.CAPTION]]
    return records


def read_images(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per image, in the order of the file; errors as read_grounding."""
    records: dict[str, Record] = {}
    for sentence in read_sentences(json_file, image_root, dataset_name):
        record = records.setdefault(
            sentence["file_name"],
            {
                **{k: sentence[k] for k in ("file_name", "height", "width") if k in sentence},
                "image_id": sentence.get("original_img_id", sentence["image_id"]),
                fields.CAPTION: "",
                fields.TARGET_CAPTIONS: [],
                "annotations": [],
            },
        )
        begin = len(record[fields.CAPTION])
        record[fields.CAPTION] += sentence[fields.CAPTION] + " "
        record[fields.TARGET_CAPTIONS].append(sentence[fields.CAPTION])
        record["annotations"] += [_moved(a, sentence, begin) for a in sentence["annotations"]]
    return list(records.values())


def _moved(annotation: dict[str, Any], sentence: Record, offset: int) -> dict[str, Any]:
    """The annotation with the spans of its one phrase in the joined text."""
    spans = annotation["tokens_positive"]
    if fields.PHRASES in sentence:
        spans = sentence[fields.PHRASES][annotation["category_id"]]
    moved = [[begin + offset, end + offset] for begin, end in spans]
    return {**annotation, "tokens_positive": moved}
