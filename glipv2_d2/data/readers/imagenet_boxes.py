"""ImageNet's boxes (ILSVRC CLS-LOC): Pascal VOC XML files of the training and validation images.

One of the five detection datasets of GLIP-L and GLIPv2-B. A class is the first name of a synset, of
several that share it ("crane") the same class; two dogs and a swimsuit whose first name is that of
another synset have their second one (our choice).
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from glipv2_d2.data.coco_fields import has_area
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.registration import Record, StreamedRecords, register

logger = logging.getLogger(__name__)

UNREADABLE = "annotation files were not readable and were dropped"
UNKNOWN_SYNSET = "boxes had a synset that is not one of ImageNet-1k's and were dropped"
NO_AREA = "boxes had no area in their image and were dropped"


def register_imagenet_boxes(root: str) -> None:
    """Register ``imagenet_boxes_{train,val}`` below ``root``/imagenet/ILSVRC."""
    directory = os.path.join(root, "imagenet", "ILSVRC")
    for split in ("train", "val"):
        annotations = os.path.join(directory, "Annotations", "CLS-LOC", split)
        images = os.path.join(directory, "Data", "CLS-LOC", split)
        name = f"imagenet_boxes_{split}"
        register(
            name,
            StreamedRecords(functools.partial(read_imagenet_boxes, annotations, images, name)),
            source_files=(annotations, images),
            evaluator_type="coco",
        )


def class_of_synset() -> tuple[dict[str, int], list[str]]:
    """The class of each synset ("n01440764"), and the class names."""
    # With timm's models, which a package of data sets should not import.
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    synonyms = [
        [part.strip() for part in info.index_to_description(i).split(",")]
        for i in range(info.num_classes())
    ]
    count_of = Counter(names[0].lower() for names in synonyms)
    chosen = [
        names[1] if count_of[names[0].lower()] > 1 and len(names) > 1 else names[0]
        for names in synonyms
    ]
    index_of = {name: i for i, name in enumerate(dict.fromkeys(chosen))}
    synsets = [info.index_to_label_name(i) for i in range(info.num_classes())]
    return {s: index_of[name] for s, name in zip(synsets, chosen, strict=True)}, list(index_of)


def read_imagenet_boxes(annotations: str, images: str, dataset_name: str) -> Iterator[Record]:
    """Detection records of all XML files below ``annotations``, in the order of their paths.

    Corners are inclusive, from 1, as in Pascal VOC. The image of ``a/b.xml`` is ``a/b.JPEG`` below
    ``images``.
    """
    index_of, names = class_of_synset()
    MetadataCatalog.get(dataset_name).set(thing_classes=names)
    faults = Faults()
    files = sorted(Path(annotations).rglob("*.xml"))
    for number, file in enumerate(tqdm(files, desc=dataset_name, disable=len(files) < 1000)):
        relative = file.relative_to(annotations).with_suffix(".JPEG")
        try:
            record = _record(file, index_of, faults)
        except (ElementTree.ParseError, ValueError, TypeError, AttributeError):
            faults.add(UNREADABLE, file)
            continue
        yield {"file_name": os.path.join(images, relative), "image_id": number, **record}
    faults.warn(logger, dataset_name)


def _record(file: Path, index_of: dict[str, int], faults: Faults) -> Record:
    content = file.read_bytes()
    if b"<!" in content:
        # Entities could expand without limit.
        raise ValueError("a document type declaration")
    root = ElementTree.fromstring(content)
    height, width = (int(root.findtext(f"size/{key}")) for key in ("height", "width"))  # type: ignore[arg-type]
    found: list[dict[str, Any]] = []
    for item in root.iter("object"):
        synset = item.findtext("name", "").strip()
        if synset not in index_of:
            faults.add(UNKNOWN_SYNSET, f"{synset[:20]!r} in {file.name}")
            continue
        x1, y1, x2, y2 = (
            float(item.findtext(f"bndbox/{key}"))  # type: ignore[arg-type]
            for key in ("xmin", "ymin", "xmax", "ymax")
        )
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
        if not has_area(box, (height, width)):
            faults.add(NO_AREA, file.name)
            continue
        found.append({"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": index_of[synset]})
    return {"height": height, "width": width, "annotations": found}
