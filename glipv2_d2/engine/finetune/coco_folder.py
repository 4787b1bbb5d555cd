"""Finding the splits of a dataset folder in one of the common COCO layouts.

A *split* is an annotation file and the folder of its images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
"""Split -> accepted names, in order of preference; also with a year, as in "train2017"."""

ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class Split:
    """One split of a folder.

    Attributes:
        annotations: the annotation file.
        images: the folder to which the file names of images are relative.
        coco: contents of the annotation file, without group categories.
    """

    annotations: Path
    images: Path
    coco: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their ids, as at inference."""
        return [c["name"] for c in sorted(self.coco["categories"], key=lambda c: c["id"])]


@dataclass(frozen=True)
class CocoFolder:
    """The splits of a folder, which share classes and ids.

    Attributes:
        test: None if the folder has no test split.
    """

    train: Split
    valid: Split
    test: Split | None


def open_coco_folder(root: str | Path) -> CocoFolder:
    """Find and load the splits of a folder.

    Supported layouts: ``train/_annotations.coco.json`` beside the images, as exported by Roboflow;
    ``annotations/instances_train2017.json``, ``annotations/train.json`` or ``train.json``, with
    images in ``images/train``, ``train`` or ``images``; a single ``train/*.json``.

    Raises:
        FileNotFoundError: the folder, a split or its images do not exist; the message lists the
            searched paths.
        ValueError: a file is not in COCO format, or the splits have different classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"'{root}' is not a folder")
    found = {kind: _find(root, kind) for kind in SPLIT_NAMES}
    for kind in ("train", "valid"):
        if found[kind] is None:
            searched = "\n".join(f"  {path}" for path in _patterns(kind))
            raise FileNotFoundError(
                f"'{root}' has no annotations of the split {kind!r}; searched for\n{searched}"
            )
    splits = {kind: _load(root, kind, path) for kind, path in found.items() if path is not None}
    splits = _without_group_categories(splits)
    expected = _categories(splits["train"])
    for split in splits.values():
        if _categories(split) != expected:
            raise ValueError(
                f"'{split.annotations}' has the classes {_categories(split)}, but the training "
                f"split has {expected}: all splits must have the same ids and names"
            )
    return CocoFolder(splits["train"], splits["valid"], splits.get("test"))


def _patterns(split: str) -> Iterator[str]:
    """Possible annotation files of a split, relative to the folder, in order of preference."""
    for name in SPLIT_NAMES[split]:
        yield f"{name}/{ROBOFLOW_FILE}"
    for folder in ("annotations/", ""):
        for name in SPLIT_NAMES[split]:
            for stem in (f"instances_{name}", name):
                yield f"{folder}{stem}.json"
                yield f"{folder}{stem}20[0-9][0-9].json"
    for name in SPLIT_NAMES[split]:
        yield f"{name}/*.json"


def _find(root: Path, split: str) -> Path | None:
    for pattern in _patterns(split):
        files = sorted(root.glob(pattern))
        if len(files) > 1:
            raise ValueError(
                f"'{root / pattern}' matches several files, {[file.name for file in files]}: keep "
                f"one for the split {split!r}"
            )
        if files:
            return files[0]
    return None


def _load(root: Path, split: str, annotations: Path) -> Split:
    try:
        coco = json.loads(annotations.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{annotations}' is not valid JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(coco, dict) or not all(isinstance(coco.get(key), list) for key in lists):
        raise ValueError(f"'{annotations}' is not in COCO format: it needs the lists {lists}")
    if not coco["images"]:
        raise ValueError(f"'{annotations}' lists no image")
    return Split(annotations, _image_folder(root, split, annotations, coco), coco)


def _image_folder(root: Path, split: str, annotations: Path, coco: dict[str, Any]) -> Path:
    """The first candidate folder that contains the first image of the annotation file."""
    stem = annotations.stem.removeprefix("instances_")
    names = dict.fromkeys((stem, *SPLIT_NAMES[split]))
    folders = [annotations.parent, annotations.parent / "images"]
    folders += [root / "images" / name for name in names]
    folders += [root / name for name in names]
    folders += [root / "images", root]
    first = coco["images"][0]["file_name"]
    for folder in folders:
        if (folder / first).is_file():
            return folder
    searched = "\n".join(f"  {folder}" for folder in dict.fromkeys(folders))
    raise FileNotFoundError(
        f"the image {first!r} of '{annotations}' does not exist; searched in\n{searched}"
    )


def _without_group_categories(splits: dict[str, Split]) -> dict[str, Split]:
    """Remove unused categories that are the supercategory of others, as Roboflow writes them."""
    categories = [c for split in splits.values() for c in split.coco["categories"]]
    groups = {c.get("supercategory") for c in categories}
    used = {a["category_id"] for split in splits.values() for a in split.coco["annotations"]}

    def is_group(category: dict[str, Any]) -> bool:
        return category["id"] not in used and category["name"] in groups

    def clean(split: Split) -> Split:
        kept = [c for c in split.coco["categories"] if not is_group(c)]
        return Split(split.annotations, split.images, {**split.coco, "categories": kept})

    return {name: clean(split) for name, split in splits.items()}


def _categories(split: Split) -> dict[Any, str]:
    return {category["id"]: category["name"] for category in split.coco["categories"]}
