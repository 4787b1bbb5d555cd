"""Detection datasets in the TSV files of VinVL and GLIP, such as their Objects365.

The files of :mod:`glipv2_d2.data.readers.tsv_files`, and:

| key | file |
|---|---|
| ``labelmap``, else ``jsondict`` | label map (:mod:`glipv2_d2.data.label_map`) |
| ``hw`` | optional TSV: a key, then ``[{"height": 240, "width": 320}]`` or ``240 320`` |

The annotations of an image are a list, or a list below ``objects``::

    [{"class": "wine glass", "rect": [10, 20, 200, 180], "IsGroupOf": 0}]

``rect`` is XYXY in pixels. Names of one number are one class, under the last of them. A row that is
not in this format is an error, since these files are written by programs: the file is damaged.
Source: microsoft/GLIP, data/datasets/tsv.py (ODTSVDataset) and box_label_loader.py.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from glipv2_d2.data.coco_fields import has_area, parse_box, parse_size
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.label_map import read_label_map
from glipv2_d2.data.readers.tsv_files import TsvLines, find_files, label_lines, tsv_paths
from glipv2_d2.data.registration import Record, StreamedRecords, register

logger = logging.getLogger(__name__)

UNKNOWN_CLASS = "boxes had a class that is not in the label map and were dropped"
NO_AREA = "boxes had no area in their image and were dropped"

LABEL_MAP_KEYS = ("labelmap", "jsondict")
OPTIONAL_KEYS = (*LABEL_MAP_KEYS, "hw")


def register_tsv_detection(name: str, yaml_file: str) -> None:
    register(
        name,
        StreamedRecords(functools.partial(iterate_tsv_detection, yaml_file, name)),
        source_files=(yaml_file,),
        find_files=functools.partial(find_files, yaml_file, OPTIONAL_KEYS),
        evaluator_type="coco",
    )


def iterate_tsv_detection(yaml_file: str, dataset_name: str) -> Iterator[Record]:
    """Detection records, one by one; images are not extracted but read from the TSV file.

    A box around a group (``IsGroupOf``) is a crowd.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or a row has another format.
    """
    paths = tsv_paths(yaml_file, OPTIONAL_KEYS)
    label_map = next((paths[key] for key in LABEL_MAP_KEYS if key in paths), None)
    if label_map is None:
        raise ValueError(
            f"{yaml_file!r} names no label map: add one, {{labelmap: train.labelmap.tsv}}"
        )
    numbers = read_label_map(label_map)
    # As in GLIP, the last of several names.
    name_of = {number: name for name, number in numbers.items()}
    index_of = {number: i for i, number in enumerate(sorted(name_of))}
    MetadataCatalog.get(dataset_name).set(thing_classes=[name_of[number] for number in index_of])
    classes = {name: index_of[number] for name, number in numbers.items()}
    faults = Faults()
    images = TsvLines(paths["img"])
    sizes = TsvLines(paths["hw"]) if "hw" in paths else None
    for index, (number, line) in enumerate(label_lines(paths)):
        try:
            key, annotations = _columns(line)
            record = {
                "file_name": images.image_path(number),
                "image_id": int(key) if key.isascii() and key.isdecimal() else index,
                **({} if sizes is None else _size(sizes[number], key)),
            }
            yield {**record, "annotations": list(_boxes(annotations, record, classes, faults))}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{paths['label']!r}, row {number + 1}: {type(error).__name__}: {error}. Download "
                "the files again, or leave the row out of the 'linelist' of the YAML file"
            ) from error
    faults.warn(logger, dataset_name)


def _columns(line: bytes) -> tuple[str, Any]:
    """The key and the parsed content of a row."""
    key, content, *_ = line.decode().split("\t")
    return key.strip(), json.loads(content)


def _size(line: bytes, key: str) -> dict[str, int]:
    """The height and width of an image; the row of ``hw`` should have the same key.

    Raises:
        ValueError, LookupError, TypeError: the row has another format.
    """
    of_key, content, *_ = line.decode().split("\t")
    if of_key.strip() != key:
        raise ValueError(f"the row of 'hw' has the key {of_key!r}, not {key!r}")
    try:
        parsed = json.loads(content)
    except ValueError:
        height, width = map(int, content.split())
        parsed = {"height": height, "width": width}
    if isinstance(parsed, list):
        parsed = parsed[0]
    size = parse_size(parsed)
    if size is None:
        raise ValueError(f"the row of 'hw' has no size: {parsed!r:.80}")
    return {"height": size[0], "width": size[1]}


def _boxes(
    annotations: Any, record: Mapping[str, Any], classes: Mapping[str, int], faults: Faults
) -> Iterator[dict[str, Any]]:
    objects = annotations["objects"] if isinstance(annotations, dict) else annotations
    for found in objects:
        if (box := parse_box(found["rect"])) is None:
            raise ValueError(f"'rect' should be four numbers, not {found['rect']!r:.80}")
        x1, y1, x2, y2 = box
        size = (record["height"], record["width"]) if "height" in record else None
        if found["class"] not in classes:
            faults.add(UNKNOWN_CLASS, f"{found['class']!r:.40} in {record['file_name']}")
        elif size is not None and not has_area([x1, y1, x2 - x1, y2 - y1], size):
            faults.add(NO_AREA, record["file_name"])
        else:
            yield {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": classes[found["class"]],
                "iscrowd": int(found.get("IsGroupOf", 0) == 1),
            }
