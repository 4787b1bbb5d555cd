"""OpenImages' boxes, versions 4 to 7: CSV files with relative coordinates.

Not every object has a box: people verified some labels of an image only. With the files of these
labels and the hierarchy of classes, the negatives of a training prompt are the labels that are
known to be absent (``fields.ABSENT_CLASSES``).

The files have no image sizes. These are read from the image files once and cached in
``image_sizes_<split>.csv`` beside the annotations.
"""

from __future__ import annotations

import csv
import functools
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.registration import Record, register
from glipv2_d2.images import image_size
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

NO_IMAGE = "images were missing or broken and were dropped"
UNKNOWN_LABEL = "boxes had a label without a class name and were dropped"
UNUSABLE_ROW = "rows had a coordinate that is not a number and were dropped"

# Of the files of version 4 and 5, 6, and 7.
PREFIXES = ("", "oidv6-", "oidv7-")
LABEL_COLUMNS = {"ImageID", "LabelName", "Confidence"}
BOX_COLUMNS = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}
# The first field of a header row, which version 7's class descriptions have.
LABEL_COLUMN = "LabelName"

# Reading image headers is bound by the disk, not by the CPU.
NUM_THREADS = 16


def register_openimages(root: str) -> None:
    """Register ``openimages_{train,validation,test}`` below ``root``/openimages."""
    directory = os.path.join(root, "openimages")
    descriptions = _published(directory, "class-descriptions-boxable.csv")
    for split in ("train", "validation", "test"):
        boxes = _published(directory, f"{split}-annotations-bbox.csv")
        image_root = os.path.join(directory, split)
        name = f"openimages_{split}"
        labels = _published(directory, f"{split}-annotations-human-imagelabels-boxable.csv")
        hierarchy = os.path.join(directory, "bbox_labels_600_hierarchy.json")
        has_labels = os.path.isfile(labels) and os.path.isfile(hierarchy)
        verified = VerifiedLabels(labels, hierarchy) if has_labels else None
        register(
            name,
            functools.partial(read_openimages, boxes, descriptions, image_root, name, verified),
            source_files=(
                *(boxes, descriptions, image_root),
                *((labels, hierarchy) if has_labels else ()),
            ),
            evaluator_type="coco",
        )


def _published(directory: str, name: str) -> str:
    """The path of a file that later versions publish with a prefix; without one if none exists."""
    paths = [os.path.join(directory, prefix + name) for prefix in PREFIXES]
    return next(filter(os.path.isfile, paths), paths[0])


@dataclass(frozen=True)
class VerifiedLabels:
    """Files of labels that people verified.

    Attributes:
        labels: CSV file with ImageID, LabelName and Confidence: 1 present, 0 absent.
        hierarchy: JSON tree of LabelName and Subcategory.
    """

    labels: str
    hierarchy: str


def read_openimages(
    boxes_file: str,
    descriptions_file: str,
    image_root: str,
    dataset_name: str,
    verified: VerifiedLabels | None = None,
) -> list[Record]:
    """Detection records with the class names of ``descriptions_file``, in its order.

    A box around a group (``IsGroupOf``) is a crowd.

    Args:
        verified: with them, records have ``absent_classes``.
    """
    index_of, names = read_descriptions(descriptions_file)
    MetadataCatalog.get(dataset_name).set(thing_classes=names)
    faults = Faults()
    rows_of = defaultdict(list)
    with open(boxes_file, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := BOX_COLUMNS.difference(reader.fieldnames or ()):
            raise ValueError(
                f"{boxes_file!r} has no columns {sorted(missing)}: it should be OpenImages' file "
                "of boxes, with a header row"
            )
        for row in reader:
            if row["LabelName"] in index_of:
                rows_of[row["ImageID"]].append(row)
            else:
                faults.add(UNKNOWN_LABEL, row["LabelName"])
    split = Path(boxes_file).name.removesuffix("-annotations-bbox.csv")
    sizes = image_sizes(rows_of, image_root, Path(boxes_file).parent / f"image_sizes_{split}.csv")
    absent_of: dict[str, list[int]] = {}
    if verified is not None:
        boxed = {image_id: {row["LabelName"] for row in rows} for image_id, rows in rows_of.items()}
        absent_of = absent_classes(verified, boxed, index_of)
    records = []
    for image_id, rows in rows_of.items():
        if image_id not in sizes:
            faults.add(NO_IMAGE, image_id)
            continue
        height, width = sizes[image_id]
        record: Record = {
            "file_name": os.path.join(image_root, f"{image_id}.jpg"),
            "image_id": image_id,
            "height": height,
            "width": width,
            "annotations": [],
        }
        for row in rows:
            try:
                record["annotations"].append(_annotation(row, index_of, height, width))
            except (ValueError, TypeError):
                faults.add(UNUSABLE_ROW, image_id)
        if verified is not None:
            record[fields.ABSENT_CLASSES] = absent_of[image_id]
        records.append(record)
    faults.warn(logger, dataset_name)
    return records


def _annotation(
    row: dict[str, str], index_of: dict[str, int], height: int, width: int
) -> dict[str, Any]:
    x1, x2 = (float(row[key]) * width for key in ("XMin", "XMax"))
    y1, y2 = (float(row[key]) * height for key in ("YMin", "YMax"))
    return {
        "bbox": [x1, y1, x2, y2],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": index_of[row["LabelName"]],
        "iscrowd": int(row.get("IsGroupOf") == "1"),
    }


def absent_classes(
    verified: VerifiedLabels, boxed: Mapping[str, set[str]], index_of: Mapping[str, int]
) -> dict[str, list[int]]:
    """The classes that are known to be absent from each image, in ascending order.

    With a class, its subclasses are absent; with a present class, its superclasses are present.

    Args:
        boxed: image id -> labels of its boxes.
        index_of: the class of each label.

    Raises:
        ValueError: a file has another form.
    """
    parents = read_hierarchy(verified.hierarchy)
    children = defaultdict(set)
    for label, above in parents.items():
        for parent in above:
            children[parent].add(label)
    present: dict[str, set[str]] = {image_id: set(labels) for image_id, labels in boxed.items()}
    absent: dict[str, set[str]] = {image_id: set() for image_id in boxed}
    with open(verified.labels, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := LABEL_COLUMNS.difference(reader.fieldnames or ()):
            raise ValueError(
                f"{verified.labels!r} has no columns {sorted(missing)}: it should be OpenImages' "
                "file of human-verified image labels, with a header row"
            )
        for row in reader:
            if row["ImageID"] in boxed:
                side = present if float(row["Confidence"]) > 0 else absent
                side[row["ImageID"]].add(row["LabelName"])
    return {
        image_id: sorted(
            index_of[label]
            for label in _closure(absent[image_id], children) - _closure(labels, parents)
            if label in index_of
        )
        for image_id, labels in present.items()
    }


def read_hierarchy(path: str) -> dict[str, set[str]]:
    """The superclasses of each label, one step up.

    Raises:
        ValueError: the file has another form.
    """
    parents: dict[str, set[str]] = defaultdict(set)
    nodes = [load_json(path)]
    while nodes:
        node = nodes.pop()
        below = node.get("Subcategory", []) if isinstance(node, dict) else None
        if below is None or not isinstance(node.get("LabelName"), str):
            raise ValueError(
                f"{path!r} has the entry {node!r:.80}; it should have LabelName and Subcategory"
            )
        for child in below:
            if isinstance(child, dict) and isinstance(child.get("LabelName"), str):
                parents[child["LabelName"]].add(node["LabelName"])
            nodes.append(child)
    return dict(parents)


def _closure(labels: Iterable[str], neighbours: Mapping[str, set[str]]) -> set[str]:
    """The labels and all that are reached from them."""
    reached: set[str] = set()
    pending = list(labels)
    while pending:
        label = pending.pop()
        if label not in reached:
            reached.add(label)
            pending += neighbours.get(label, ())
    return reached


def read_descriptions(descriptions_file: str) -> tuple[dict[str, int], list[str]]:
    """The class index of each label ("/m/011k07"), and the class names.

    Raises:
        ValueError: a row has no label or no name.
    """
    with open(descriptions_file, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0] != LABEL_COLUMN]
    for row in rows:
        if len(row) < 2:
            raise ValueError(
                f"{descriptions_file!r} has the row {row}; it should be label and name"
            )
    return {row[0]: i for i, row in enumerate(rows)}, [row[1] for row in rows]


def image_sizes(
    image_ids: Iterable[str], image_root: str, cache: Path
) -> dict[str, tuple[int, int]]:
    """The (height, width) of every upright image that can be opened, cached in the file ``cache``.

    If its directory is read-only, the sizes are read again each time.
    """
    sizes: dict[str, tuple[int, int]] = {}
    if cache.is_file():
        with cache.open(encoding="utf-8", newline="") as file:
            sizes = {row[0]: (int(row[1]), int(row[2])) for row in csv.reader(file)}
    unknown = [image_id for image_id in image_ids if image_id not in sizes]
    if not unknown:
        return sizes
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        paths = [os.path.join(image_root, f"{image_id}.jpg") for image_id in unknown]
        found = tqdm(pool.map(_size_of, paths), total=len(paths), desc=f"sizes, {image_root}")
        sizes |= {i: size for i, size in zip(unknown, found, strict=True) if size is not None}
    try:
        _write_sizes(sizes, cache)
    except OSError as error:
        logger.warning("image sizes could not be cached: %s", error)
    return sizes


def _size_of(path: str) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except (FileNotFoundError, ValueError):
        return None


def _write_sizes(sizes: dict[str, tuple[int, int]], cache: Path) -> None:
    """Write the cache atomically, because several processes may load the dataset."""
    with tempfile.NamedTemporaryFile(
        "w", dir=cache.parent, encoding="utf-8", newline="", delete=False
    ) as file:
        csv.writer(file).writerows((i, height, width) for i, (height, width) in sizes.items())
    os.replace(file.name, cache)
