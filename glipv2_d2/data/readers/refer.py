"""RefCOCO, RefCOCO+ and RefCOCOg as published (lichengunc/refer), with the masks of the referents.

A folder has ``refs(<split by>).p``, a pickle of plain values, and ``instances.json`` in COCO's
format. The pickle is read without executing code from it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glipv2_d2.checkpoint.restricted_pickle import RefusedGlobal, read_pickle
from glipv2_d2.data.annotation_file import AnnotationFile, read_annotation_file
from glipv2_d2.data.coco_fields import parse_size
from glipv2_d2.data.coco_truth import sound_annotation
from glipv2_d2.data.readers.coco import box_and_mask, image_record
from glipv2_d2.data.registration import Record, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

# Splits per dataset and author of the split. Google published no test set of RefCOCOg.
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {
        "unc": ("train", "val", "testA", "testB"),
        "google": ("train", "val", "test"),
    },
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
}

UNKNOWN_ANNOTATION = "references had an ann_id that is not in instances.json and were dropped"
UNUSABLE_REFERENT = "references had no usable box and were dropped"
EMPTY_SENTENCE = "sentences were empty and were dropped"


def register_refer(root: str) -> None:
    """Register ``<dataset>_<split by>_<split>`` below ``root``, on COCO's 2014 images."""
    image_root = os.path.join(root, "coco", "train2014")
    for dataset, authors in SPLITS.items():
        for author, splits in authors.items():
            refs = os.path.join(root, dataset, f"refs({author}).p")
            instances = os.path.join(root, dataset, "instances.json")
            for split in splits:
                name = f"{dataset}_{author}_{split}"
                register(
                    name,
                    functools.partial(read_refer, refs, instances, image_root, split, name),
                    source_files=(refs, instances, image_root),
                    evaluator_type="refcoco",
                )


def read_refer(
    refs_file: str, instances_file: str, image_root: str, split: str, dataset_name: str
) -> list[Record]:
    """One record per sentence of a split, which is its caption and its only phrase.

    ``image_id`` is the file's ``sent_id``, because an image has many sentences. The one annotation
    has the box and the mask of the referent.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the pickle has another content, or requests code.
    """
    refs = read_refs(refs_file)
    file = read_annotation_file(instances_file)
    annotations = {annotation.get("id"): annotation for annotation in file.annotations}
    records = []
    for ref in refs:
        if ref["split"] != split:
            continue
        annotation = annotations.get(ref["ann_id"])
        if annotation is None:
            file.faults.add(UNKNOWN_ANNOTATION, f"{ref['ref_id']!r} in {refs_file!r}")
            continue
        of_referent = _record_of_referent(annotation, file, image_root)
        if of_referent is None:
            file.faults.add(UNUSABLE_REFERENT, f"{ref['ref_id']!r} in {refs_file!r}")
            continue
        for sentence in ref["sentences"]:
            caption = sentence["sent"].strip()
            if not caption:
                file.faults.add(EMPTY_SENTENCE, sentence["sent_id"])
                continue
            records.append(
                {
                    **of_referent,
                    "image_id": sentence["sent_id"],
                    fields.CAPTION: caption,
                    fields.PHRASES: [[(0, len(caption))]],
                }
            )
    file.faults.warn(logger, dataset_name)
    return records


def _record_of_referent(
    annotation: Mapping[str, Any], file: AnnotationFile, image_root: str
) -> Record | None:
    image = file.images[annotation["image_id"]]
    sound = sound_annotation(annotation, parse_size(image), file)
    if sound is None:
        return None
    # The referent of a sentence counts, also if it is a crowd in COCO.
    referent = {**box_and_mask(sound), "iscrowd": 0, "category_id": 0}
    return {**image_record(image, image_root), "annotations": [referent]}


def read_refs(path: str) -> list[dict[str, Any]]:
    """The references of a ``refs(*).p``: ref_id, ann_id, split and sentences of each.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no pickle of references, or requests code.
    """
    try:
        content = read_pickle(Path(path))
    except FileNotFoundError:
        raise
    except RefusedGlobal as error:
        raise ValueError(
            f"{path!r} requests {error}, which could execute code: download refs(*).p again"
        ) from error
    except Exception as error:  # unpickling foreign bytes may raise anything
        raise ValueError(f"{path!r} is not a pickle ({error}): download it again") from error
    if not isinstance(content, list):
        raise ValueError(f"{path!r} has a {type(content).__name__}, not a list of references")
    for number, ref in enumerate(content):
        if not _is_ref(ref):
            raise ValueError(
                f"number {number} of {path!r} is {ref!r:.120}; it should have ref_id, ann_id, "
                "split, and sentences with sent_id and sent"
            )
    return content


def _is_ref(ref: Any) -> bool:
    if not isinstance(ref, dict) or not {"ref_id", "ann_id"} <= ref.keys():
        return False
    sentences = ref.get("sentences")
    return (
        isinstance(ref.get("split"), str)
        and isinstance(ref["ann_id"], int)
        and isinstance(sentences, list)
        and all(
            isinstance(s, dict) and isinstance(s.get("sent"), str) and "sent_id" in s
            for s in sentences
        )
    )
