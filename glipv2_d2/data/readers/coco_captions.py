"""Captioning datasets: COCO's caption files and Karpathy's splits.

COCO: ``{"images": [{id, file_name, height, width}], "annotations": [{id, image_id, caption}]}``.
Karpathy: ``{"images": [{filepath, filename, cocoid, imgid, split, sentences: [{raw, tokens,
sentid}]}]}``; its split "restval" is used for training.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.readers.coco import image_record
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import is_nonempty_string
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

EMPTY_CAPTION = "captions were empty and were dropped"

KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def register_coco_captions(root: str) -> None:
    """Register ``coco_captions_{2014,2017}_{train,val}`` and ``coco_captions_karpathy_<split>``."""
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
    """Register COCO's captions, or a file whose entries of ``images`` have a ``caption`` each."""
    register(
        name,
        functools.partial(read_coco_captions, json_file, image_root, name),
        source_files=(json_file, image_root),
        evaluator_type="captions",
    )


def read_coco_captions(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per image with all of its captions; in a test set, no image has captions.

    Args:
        dataset_name: for the report of dropped captions.

    Raises:
        ValueError: the file is not in COCO's format, none of its annotations is a caption of its
            images, or only some images have captions.
    """
    file = read_annotation_file(json_file)
    annotations_of = file.annotations_of()
    records = []
    for image_id, image in file.images.items():
        record = image_record(image, image_root)
        own = [image["caption"]] if "caption" in image else []
        texts = [a["caption"] for a in annotations_of[image_id] if "caption" in a]
        record[fields.TARGET_CAPTIONS] = _nonempty_captions([*own, *texts], record, file.faults)
        records.append(record)
    file.faults.warn(logger, dataset_name)
    if file.num_listed and not any(record[fields.TARGET_CAPTIONS] for record in records):
        raise ValueError(
            f"{json_file!r}: none of its {file.num_listed} annotations is the 'caption' of "
            "one of its images: give each a nonempty 'caption' and the 'image_id' of an image, or "
            f"omit all annotations, as in a test set. {file.faults}"
        )
    _check_all_have_captions(records, json_file)
    return records


def read_karpathy(json_file: str, coco_root: str, split: str) -> list[Record]:
    """Records of a split with their raw sentences, without image sizes, which the file lacks.

    Args:
        coco_root: the folder that contains ``train2014`` and ``val2014``.
        split: a key of :data:`KARPATHY_SPLITS`.

    Raises:
        ValueError: the file is not in this format, or an image has no caption.
    """
    faults = Faults()
    records = []
    try:
        images = list(load_json(json_file)["images"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{json_file!r} is not in the format of Karpathy's splits ({type(error).__name__}: "
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
                f"{json_file!r}: number {number} of its images is not in the format of Karpathy's "
                f"splits ({type(error).__name__}: {error}): {image!r:.200}"
            ) from error
        record[fields.TARGET_CAPTIONS] = _nonempty_captions(texts, record, faults)
        records.append(record)
    faults.warn(logger, f"{json_file}, {split}")
    _check_all_have_captions(records, json_file)
    return records


def _nonempty_captions(texts: Sequence[str], record: Record, faults: Faults) -> list[str]:
    """The nonempty captions, each on one line."""
    kept = [" ".join(text.split()) for text in texts if is_nonempty_string(text)]
    faults.add(EMPTY_CAPTION, record["file_name"], len(texts) - len(kept))
    return kept


def _check_all_have_captions(records: Sequence[Record], json_file: str) -> None:
    bare = [record["file_name"] for record in records if not record[fields.TARGET_CAPTIONS]]
    if 0 < len(bare) < len(records):
        raise ValueError(
            f"{json_file!r}: {len(bare)} of {len(records)} images have no caption, the first is "
            f"{bare[0]!r}: remove them, because the metrics average over all images"
        )
