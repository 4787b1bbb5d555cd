"""Images to be described, with the captions that people wrote: COCO's files and Karpathy's splits.

COCO: ``{"images": [{id, file_name, height, width}], "annotations": [{id, image_id, caption}]}``.
Karpathy: ``{"images": [{filepath, filename, cocoid, imgid, split, sentences: [{raw, tokens,
sentid}]}]}``; images of the split "restval" are trained on.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Sequence

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.readers.coco import faults_of_images, image_record, open_coco
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import has_words
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

EMPTY_CAPTION = "captions had no words and were left out"

KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def register_coco_captions(root: str) -> None:
    """``coco_captions_{2014,2017}_{train,val}``, ``coco_captions_karpathy_{train,val,test}``."""
    folder = os.path.join(root, "coco")
    for year in ("2014", "2017"):
        for split in ("train", "val"):
            register_captioning(
                f"coco_captions_{year}_{split}",
                os.path.join(folder, "annotations", f"captions_{split}{year}.json"),
                os.path.join(folder, f"{split}{year}"),
            )
    json_file = os.path.join(folder, "annotations", "dataset_coco.json")
    for split in KARPATHY_SPLITS:
        register(
            f"coco_captions_karpathy_{split}",
            functools.partial(read_karpathy, json_file, folder, split),
            source_files=(json_file, folder),
            evaluator_type="captions",
        )


def register_captioning(name: str, json_file: str, image_root: str) -> None:
    """Register COCO's captions; or images that have their one ``caption`` in the list of images."""
    register(
        name,
        functools.partial(read_coco_captions, json_file, image_root, name),
        source_files=(json_file, image_root),
        evaluator_type="captions",
    )


def read_coco_captions(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per image with all of its captions; a file without any is a test set.

    Args:
        dataset_name: for the report of captions that were left out.

    Raises:
        ValueError: the file is not in COCO's format, its annotations have no captions of its
            images, or an image has no caption and others have.
    """
    coco = open_coco(json_file)
    faults = faults_of_images(coco)
    records = []
    for image_id in sorted(coco.imgs):
        image = coco.imgs[image_id]
        record = image_record(image, image_root)
        del record["annotations"]
        own = [image["caption"]] if "caption" in image else []
        texts = [a["caption"] for a in coco.imgToAnns.get(image_id, ()) if "caption" in a]
        record[fields.TARGET_CAPTIONS] = _with_words([*own, *texts], record, faults)
        records.append(record)
    faults.warn(logger, dataset_name)
    annotations = coco.dataset.get("annotations", ())
    if annotations and not any(record[fields.TARGET_CAPTIONS] for record in records):
        ids = sorted({type(image_id).__name__ for image_id in coco.imgs})
        raise ValueError(
            f"{json_file!r}: none of its {len(annotations)} annotations is the 'caption' of one of "
            f"its images, whose ids are {' and '.join(ids) or 'missing'}; the first is "
            f"{annotations[0]!r:.200}: give it a 'caption' and an 'image_id' of the images, or "
            "leave all annotations out, as in a test set"
        )
    _check_all_have_captions(records, json_file)
    return records


def read_karpathy(json_file: str, coco_root: str, split: str) -> list[Record]:
    """The images of a split with their raw sentences; their sizes are not in the file.

    Args:
        coco_root: the folder that holds ``train2014`` and ``val2014``.
        split: a key of :data:`KARPATHY_SPLITS`.

    Raises:
        ValueError: the file is not in this form, or an image has no caption.
    """
    faults = Faults()
    records = []
    with open(json_file, encoding="utf-8") as file:
        try:
            images = json.load(file)["images"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{json_file!r} is not in the form of Karpathy's splits ({type(error).__name__}: "
                f"{error}): it should be a JSON object with a list 'images'"
            ) from error
    for number, image in enumerate(images):
        try:
            if image["split"] not in KARPATHY_SPLITS[split]:
                continue
            record: Record = {
                "file_name": os.path.join(coco_root, image["filepath"], image["filename"]),
                "image_id": image["cocoid"],
            }
            texts = [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{json_file!r}: number {number} of its images is not in the form of Karpathy's "
                f"splits ({type(error).__name__}: {error}): {image!r:.200}"
            ) from error
        record[fields.TARGET_CAPTIONS] = _with_words(texts, record, faults)
        records.append(record)
    faults.warn(logger, f"{json_file}, {split}")
    _check_all_have_captions(records, json_file)
    return records


def _with_words(texts: Sequence[str], record: Record, faults: Faults) -> list[str]:
    """The captions that have words, in one line each."""
    kept = [" ".join(text.split()) for text in texts if has_words(text)]
    faults.add(EMPTY_CAPTION, record["file_name"], len(texts) - len(kept))
    return kept


def _check_all_have_captions(records: Sequence[Record], json_file: str) -> None:
    bare = [record["file_name"] for record in records if not record[fields.TARGET_CAPTIONS]]
    if 0 < len(bare) < len(records):
        raise ValueError(
            f"{json_file!r}: {len(bare)} of {len(records)} images have no caption with words, the "
            f"first is {bare[0]!r}: take them out, as the metrics are over all images"
        )
