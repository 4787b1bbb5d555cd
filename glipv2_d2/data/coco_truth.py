"""The content of an annotation file in COCO's format, parsed and validated once.

Training, evaluation, ``glipv2 check-data`` and fine-tuning read annotation files through
:func:`read_truth` only, so what one of them leaves out or repairs, the others do too. Readers make
records of the truth, evaluators take it as pycocotools' ``COCO``.

Repaired: ids and numbers as text, repeated annotation ids, a flat polygon, a missing area or
``iscrowd``. Left out, counted and named: annotations without a usable box, class or image, and
masks without a usable part. An entry that allows no decision is an error.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from glipv2_d2.data.annotation_file import (
    ID_AS_TEXT,
    REPEATED_ANNOTATION,
    REPEATED_IMAGE,
    SIZE_AS_TEXT,
    UNKNOWN_SIZE,
    AnnotationFile,
    id_order,
    read_annotation_file,
    required_id,
)
from glipv2_d2.data.coco_fields import (
    Id,
    Segmentation,
    Size,
    has_area,
    is_one_polygon,
    parse_box,
    parse_flag,
    parse_number,
    parse_segmentation,
    parse_size,
)
from glipv2_d2.data.faults import Faults

UNKNOWN_CATEGORY = "annotations had a category_id that is not in the file's categories"
UNUSABLE_BOX = "annotations had no bbox of four numbers"
BOX_WITHOUT_AREA = "annotations had a bbox without area inside their image"
UNUSABLE_MASK = "annotations had a mask with unusable parts, which were left out"

FLAG_AS_TEXT = "annotations had iscrowd or ignore as text"
FLAT_POLYGON = "annotations had one polygon in place of a list of polygons"
REPEATED_CATEGORY = "categories were listed more than once"
GROUP_CATEGORY = "categories without boxes were the group of others, not a class"
NUMBER_AS_NAME = "categories had a number as their name"

REPAIRS = frozenset(
    {
        REPEATED_IMAGE,
        REPEATED_ANNOTATION,
        ID_AS_TEXT,
        SIZE_AS_TEXT,
        UNKNOWN_SIZE,
        FLAG_AS_TEXT,
        FLAT_POLYGON,
        REPEATED_CATEGORY,
        GROUP_CATEGORY,
        NUMBER_AS_NAME,
    }
)
"""Kinds of faults after which no annotation is missing."""

MASK_LOSSES = frozenset({UNUSABLE_MASK})
"""Kinds of faults after which a box has no mask or a smaller one."""

MAX_AREA = 1e14
_CATEGORY_KEYS = ("id", "name", "supercategory", "frequency")
_NO_GROUP = (None, "", "none", "None")


@dataclass(frozen=True)
class CocoTruth:
    """Images, classes and sound annotations of a detection dataset.

    Attributes:
        path: of the file, for messages.
        images: image id -> entry, see :class:`AnnotationFile`.
        categories: ``id`` (an integer), ``name`` and, if the file has it, ``frequency``, in
            ascending order of the ids.
        groups: categories that were left out because they are the group of others.
        annotations_of: image id -> annotations with ``id`` (from 1), ``image_id``,
            ``category_id``, ``bbox`` (XYWH, with area inside the image), ``area``, ``iscrowd``
            (0 or 1) and, if usable, ``segmentation``.
        has_annotations: False for a test set.
        faults: what was left out or repaired.
    """

    path: str
    images: dict[Id, dict[str, Any]]
    categories: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    annotations_of: dict[Id, list[dict[str, Any]]]
    has_annotations: bool
    faults: Faults

    def annotations(self) -> Iterator[dict[str, Any]]:
        """All annotations, image by image."""
        for image_id in self.images:
            yield from self.annotations_of.get(image_id, ())

    def to_coco(self) -> dict[str, Any]:
        """The content of a sound file in COCO's format. Entries are shared, not copied."""
        content = {
            "info": {},
            "images": list(self.images.values()),
            "categories": list(self.categories),
        }
        if self.has_annotations:
            content["annotations"] = list(self.annotations())
        return content


def coco_api(content: dict[str, Any]) -> COCO:
    """Index the content of a sound file with pycocotools, without its printed messages."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_truth(path: str, *, class_names: Sequence[str] | None = None) -> CocoTruth:
    """The images, classes and sound annotations of a detection dataset.

    Args:
        class_names: names of the categories 1, 2, 3 ..., in place of the file's categories.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not in COCO's format, or an entry allows no decision: an
            annotation without a category_id, two names of one category.
    """
    file = read_annotation_file(path)
    if class_names is None:
        listed, new_id_of = _parse_categories(file)
    else:
        listed = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
        new_id_of = {category["id"]: category["id"] for category in listed}
    size_of = {image_id: parse_size(image) for image_id, image in file.images.items()}
    annotations_of: dict[Id, list[dict[str, Any]]] = {image_id: [] for image_id in file.images}
    used = set()
    for number, entry in enumerate(file.annotations, start=1):
        image_id = entry["image_id"]
        size = size_of[image_id]
        category_id = _category_of(entry, new_id_of, file)
        sound = sound_annotation(entry, size, file)
        if sound is None or category_id is None:
            continue
        used.add(category_id)
        # Evaluators match by id, and read 0 as no match.
        ids = {"id": number, "image_id": image_id, "category_id": category_id}
        annotations_of[image_id].append({**ids, **sound, "area": _area(entry, sound, size)})
    groups = [] if class_names is not None else _groups(listed, used)
    for group in groups:
        file.faults.add(GROUP_CATEGORY, f"{group['name']!r} in {path!r}")
    return CocoTruth(
        path,
        file.images,
        [category for category in listed if category not in groups],
        groups,
        annotations_of,
        file.num_listed is not None,
        file.faults,
    )


def _parse_categories(file: AnnotationFile) -> tuple[list[dict[str, Any]], dict[Id, int]]:
    """The categories with integer ids, in ascending order, and the integer id of each id."""
    by_id: dict[Id, dict[str, Any]] = {}
    for number, entry in enumerate(file.categories):
        where = f"number {number} of the categories in {file.path!r}"
        category_id = required_id(entry, "id", where, file.faults)
        name = entry.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            file.faults.add(NUMBER_AS_NAME, f"{name!r:.80} in {file.path!r}")
            name = str(name)
        if not isinstance(name, str):
            raise ValueError(f"{where} has the 'name' {name!r:.80}; it should be text")
        category = {key: entry[key] for key in _CATEGORY_KEYS if key in entry} | {"name": name}
        first = by_id.setdefault(category_id, category)
        if first is category:
            continue
        if first["name"] != name:
            raise ValueError(
                f"{file.path!r} has the category id {category_id!r} twice, for {first['name']!r} "
                f"and {name!r}: give every class an id of its own"
            )
        file.faults.add(REPEATED_CATEGORY, f"{name!r} ({category_id!r}) in {file.path!r}")
    ids = sorted(by_id, key=id_order)
    if any(isinstance(category_id, str) for category_id in ids):
        # Evaluators compare ids as numbers: without one for each category, all are numbered.
        ids = list(by_id)
        new_id_of = {category_id: i + 1 for i, category_id in enumerate(ids)}
    else:
        new_id_of = {category_id: int(category_id) for category_id in ids}
    return [{**by_id[i], "id": new_id_of[i]} for i in ids], new_id_of


def _groups(categories: Sequence[dict[str, Any]], used: set[Any]) -> list[dict[str, Any]]:
    """Unused categories that are the supercategory of others, as Roboflow writes them."""
    ids_below: dict[str, set[Any]] = defaultdict(set)
    for category in categories:
        if isinstance(category.get("supercategory"), str):
            ids_below[category["supercategory"]].add(category["id"])
    return [
        category
        for category in categories
        if category["id"] not in used
        and category.get("supercategory") in _NO_GROUP
        and ids_below.get(category["name"], set()) - {category["id"]}
    ]


def _category_of(
    entry: Mapping[str, Any], new_id_of: Mapping[Id, int], file: AnnotationFile
) -> int | None:
    given = entry.get("category_id")
    if type(given) is not int:
        given = required_id(entry, "category_id", file.place(entry), file.faults)
    if given not in new_id_of:
        file.faults.add(UNKNOWN_CATEGORY, f"{given!r:.80} of {file.place(entry)}")
        return None
    return new_id_of[given]


def sound_annotation(
    entry: Mapping[str, Any], size: Size | None, file: AnnotationFile
) -> dict[str, Any] | None:
    """The ``bbox`` (XYWH), ``iscrowd`` (0 or 1) and usable ``segmentation`` of an annotation.

    A box with ``ignore`` is a crowd: training drops it, and evaluation ignores detections in it.

    Args:
        size: of the image.
        file: its faults count what is left out or repaired.

    Returns:
        None without a usable box.

    Raises:
        ValueError: ``iscrowd`` or ``ignore`` is no flag.
    """
    box = parse_box(entry.get("bbox"))
    if box is None:
        file.faults.add(UNUSABLE_BOX, f"{entry.get('bbox')!r:.80} of {file.place(entry)}")
        return None
    if not has_area(box, size):
        file.faults.add(BOX_WITHOUT_AREA, f"{box} of {file.place(entry)}")
        return None
    sound: dict[str, Any] = {"bbox": box, "iscrowd": _is_crowd(entry, file)}
    given = entry.get("segmentation")
    if given is None:
        return sound
    segmentation, num_unusable = parse_segmentation(given, size)
    if num_unusable:
        file.faults.add(UNUSABLE_MASK, file.place(entry))
    elif is_one_polygon(given):
        file.faults.add(FLAT_POLYGON, file.place(entry))
    if segmentation is not None:
        sound["segmentation"] = segmentation
    return sound


def _is_crowd(entry: Mapping[str, Any], file: AnnotationFile) -> int:
    is_crowd = False
    for key in ("iscrowd", "ignore"):
        value = entry.get(key)
        flag = parse_flag(value)
        if flag is None:
            raise ValueError(
                f"{file.place(entry)} has the {key!r} {value!r:.80}; it should be 0 or 1"
            )
        if isinstance(value, str):
            file.faults.add(FLAG_AS_TEXT, file.place(entry))
        is_crowd |= flag
    return int(is_crowd)


def _area(entry: Mapping[str, Any], sound: Mapping[str, Any], size: Size | None) -> float:
    """The area in the file if it is positive, otherwise that of the mask or box, in pixels."""
    area = parse_number(entry.get("area"), MAX_AREA)
    if area is not None and area > 0:
        return area
    return mask_or_box_area(sound["bbox"], sound.get("segmentation"), size)


def mask_or_box_area(
    box: Sequence[float], segmentation: Segmentation | None, size: Size | None
) -> float:
    """The area of a usable mask in pixels, or of the box (XYWH) if there is no mask.

    Args:
        size: of the image; if unknown, polygons are not rasterized.
    """
    if isinstance(segmentation, dict):
        return float(coco_mask.area(segmentation))
    if segmentation is not None and size is not None:
        return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))))
    return float(box[2] * box[3])
