"""YOLO's format: ``data.yaml``, images, and a text file of labels per image.

A line of labels is ``class x y w h`` (the centre and the size of a box) or ``class x1 y1 x2 y2
...`` (a polygon), in parts of the width and height of the image
(https://docs.ultralytics.com/datasets/detect, .../segment).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from glipv2_d2.data.faults import Faults
from glipv2_d2.engine.finetune.splits import SPLIT_NAMES, DatasetFolder, Split, divide
from glipv2_d2.images import IMAGE_SUFFIXES, image_size
from glipv2_d2.messages import quote
from glipv2_d2.text_files import read_lines

logger = logging.getLogger(__name__)

YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

WITHOUT_LABELS = "images had no label file, and count as images without boxes"
BROKEN_LINE = "lines of label files were left out"
UNREADABLE_IMAGE = "images could not be read, and were left out"

_IMAGES, _LABELS = "images", "labels"
# Beyond the edges by rounding.
_TOLERANCE = 0.01


def open_yolo_folder(root: Path) -> DatasetFolder:
    """Find and load the splits of a folder with a ``data.yaml``.

    Paths in the file that do not exist on this machine, as in downloaded exports, are replaced by
    the usual folders: ``images/train``, ``train/images`` and so on. Boxes of polygons have masks.

    Raises:
        FileNotFoundError: a split has no images.
        ValueError: ``data.yaml`` has no class names, a class id is not among them, or a label
            file cannot be read.
    """
    file = next(root / name for name in YOLO_FILES if (root / name).is_file())
    content = _read_yaml(file)
    names = _class_names(content, file)
    faults = Faults()
    splits = {}
    for kind, aliases in SPLIT_NAMES.items():
        listed = next((content[name] for name in aliases if content.get(name)), None)
        images, searched = _images_of(root, content.get("path"), listed, aliases)
        if images:
            splits[kind] = _load_split(file, images, names, content, faults)
        elif kind == "train" or listed is not None:
            raise FileNotFoundError(
                f"'{file}' has no images of the split {kind!r}; searched in\n"
                + "\n".join(f"  {path}" for path in searched)
            )
    faults.warn(logger, str(root))
    notes = [str(faults)] if faults else []
    if "valid" not in splits:
        splits["train"], splits["valid"] = divide(splits["train"])
        notes.append(
            f"'{file.name}' names no images for validation: {len(splits['valid'].coco['images'])} "
            "of those for training, chosen by their names, are used"
        )
        logger.warning(notes[-1])
    return DatasetFolder("YOLO", splits["train"], splits["valid"], splits.get("test"), notes)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is not plain YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"'{file}' is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' must be a mapping with the keys names, train and val")
    return content


def _class_names(content: dict[str, Any], file: Path) -> list[str]:
    """The class names in the order of their ids, which start at 0."""
    names = content.get("names")
    if isinstance(names, dict):
        try:
            by_id = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError):
            by_id = {}
        names = [by_id[i] for i in range(len(by_id)) if i in by_id]
        if len(names) != len(content["names"]):
            raise ValueError(
                f"'{file}': the keys of names are {quote(list(content['names']))}; they should be "
                "the class ids from 0, without gaps"
            )
    if not isinstance(names, list) or not names:
        raise ValueError(
            f"'{file}' has no class names: add a list, names: [cat, dog], or a mapping from ids"
        )
    if bad := [name for name in names if not str(name).strip() or isinstance(name, dict | list)]:
        raise ValueError(f"'{file}': the class name {bad[0]!r:.80} should be text")
    return [str(name) for name in names]


def _images_of(
    root: Path, base: Any, listed: Any, aliases: Sequence[str]
) -> tuple[list[Path], list[Path]]:
    """The images of a split, and where they were searched."""
    entries = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    found: list[Path] = []
    searched: list[Path] = []
    for entry in entries:
        # Roboflow writes ../train/images for train/images.
        inside = str(entry).lstrip("./")
        places = [root / str(base or "") / str(entry), root / str(entry), root / inside]
        for place in dict.fromkeys(places):
            searched.append(place)
            if images := _listed_images(place, root):
                found += images
                break
    usual = [root / path for name in aliases for path in (f"{_IMAGES}/{name}", f"{name}/{_IMAGES}")]
    for place in usual if not found else ():
        searched.append(place)
        if images := _listed_images(place, root):
            return images, searched
    return list(dict.fromkeys(found)), list(dict.fromkeys(searched))


def _listed_images(place: Path, root: Path) -> list[Path]:
    """The images in a folder and its subfolders, or in a text file with one path per line."""
    if place.is_dir():
        return sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if place.suffix != ".txt" or not place.is_file():
        return []
    lines = (line.strip() for line in read_lines(place))
    paths = [Path(line) for line in lines if line]
    return [_existing(path, place.parent, root) for path in paths]


def _existing(path: Path, *folders: Path) -> Path:
    return next((p for folder in folders if (p := folder / path).is_file()), folders[0] / path)


def _load_split(
    file: Path,
    images: Sequence[Path],
    names: Sequence[str],
    content: dict[str, Any],
    faults: Faults,
) -> Split:
    folder = Path(os.path.commonpath([path.absolute().parent for path in images]))
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }
    for path in images:
        try:
            height, width = image_size(path)
        except (OSError, ValueError):
            faults.add(UNREADABLE_IMAGE, path)
            continue
        image_id = len(coco["images"]) + 1
        name = str(path.absolute().relative_to(folder))
        coco["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for label in _labels(path, names, "kpt_shape" in content, faults):
            annotation = _annotation(label, height, width)
            coco["annotations"].append(
                {"id": len(coco["annotations"]) + 1, "image_id": image_id, **annotation}
            )
    if not coco["images"]:
        raise ValueError(f"'{folder}': no image can be read; the first: {images[0]}")
    return Split(file, folder, coco)


def label_file(image: Path) -> Path:
    """The label file of an image: ``labels`` in place of the last ``images`` of its path.

    >>> str(label_file(Path("my/images/train/1.jpg")))
    'my/labels/train/1.txt'
    """
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == _IMAGES:
            parts[i] = _LABELS
            break
    return Path(*parts).with_suffix(".txt")


def _labels(
    image: Path, names: Sequence[str], has_keypoints: bool, faults: Faults
) -> Iterator[tuple[int, list[float]]]:
    """Class id, and four numbers of a box or the points of a polygon, of each usable line."""
    file = label_file(image)
    if not file.is_file():
        faults.add(WITHOUT_LABELS, image)
        return
    try:
        lines = read_lines(file)
    except ValueError as error:
        raise ValueError(f"'{file}': {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of '{file}'"
        numbers = _numbers(line)
        if has_keypoints:
            numbers = numbers[:5]
        if reason := _why_broken(numbers):
            faults.add(BROKEN_LINE, f"{where}: {line.strip()!r:.60} {reason}")
            continue
        class_id = int(numbers[0])
        if not 0 <= class_id < len(names):
            raise ValueError(
                f"{where} has the class id {class_id}, but data.yaml has {len(names)} class names, "
                f"0 to {len(names) - 1}: add the missing names, or correct the line"
            )
        yield class_id, [min(max(x, 0.0), 1.0) for x in numbers[1:]]


def _numbers(line: str) -> list[float]:
    try:
        return [float(part) for part in line.split()]
    except ValueError:
        return []


def _why_broken(numbers: Sequence[float]) -> str | None:
    count = len(numbers)
    if count == 0:
        return "has a part that is no number"
    if count != 5 and (count < 7 or count % 2 == 0):
        return f"has {count} numbers in place of 5, or of 7 or more for a polygon"
    if not all(map(math.isfinite, numbers)):
        return "has a number that is not finite"
    if numbers[0] != int(numbers[0]):
        return "does not begin with a class id"
    if not all(-_TOLERANCE <= x <= 1 + _TOLERANCE for x in numbers[1:]):
        return "has coordinates outside 0 to 1: they should be parts of the width and height"
    if count == 5 and min(numbers[3:]) <= 0:
        return "has a box without area"
    return None


def _annotation(label: tuple[int, Iterable[float]], height: int, width: int) -> dict[str, Any]:
    class_id, numbers = label
    values = list(numbers)
    if len(values) == 4:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"category_id": class_id + 1, "bbox": box, "iscrowd": 0}
    points = [value * (width, height)[i % 2] for i, value in enumerate(values)]
    xs, ys = points[::2], points[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"category_id": class_id + 1, "bbox": box, "segmentation": [points], "iscrowd": 0}
