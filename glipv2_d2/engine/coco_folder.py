"""A folder in one of the usual forms of COCO's format -> its splits.

A *split* is an annotation file and the folder that its file names are relative to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
"""What a split may be called, the first that is there counts; also as "train2017"."""

ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class Split:
    """One split of a folder.

    Attributes:
        annotations: its file.
        images: the folder of its images.
        coco: the file's content, without classes that are only the name of a group.
    """

    annotations: Path
    images: Path
    coco: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        """In the order of the ids, as they are asked."""
        return [c["name"] for c in sorted(self.coco["categories"], key=lambda c: c["id"])]


@dataclass(frozen=True)
class CocoFolder:
    """The splits of a folder, with the same classes under the same ids.

    Attributes:
        test: None where there is none.
    """

    train: Split
    valid: Split
    test: Split | None


def open_coco_folder(root: str | Path) -> CocoFolder:
    """Find and read the splits of a folder.

    Known forms: ``train/_annotations.coco.json`` beside the images, as Roboflow writes it;
    ``annotations/instances_train2017.json`` or ``annotations/train.json`` or ``train.json``, with
    the images in ``images/train``, ``train`` or ``images``; ``train/*.json``, the only one there.

    Raises:
        FileNotFoundError: the folder, a split or its images are not there; says what was looked
            for.
        ValueError: a file is not in COCO's format, or the splits have other classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"'{root}' is no folder")
    found = {kind: _find(root, kind) for kind in SPLIT_NAMES}
    for kind in ("train", "valid"):
        if found[kind] is None:
            looked_for = "\n".join(f"  {path}" for path in _patterns(kind))
            raise FileNotFoundError(
                f"'{root}' has no annotations of its split {kind!r}; looked for\n{looked_for}"
            )
    splits = {kind: _read(root, kind, path) for kind, path in found.items() if path is not None}
    splits = _without_groups(splits)
    expected = _categories(splits["train"])
    for split in splits.values():
        if _categories(split) != expected:
            raise ValueError(
                f"'{split.annotations}' has the classes {_categories(split)}, but the training "
                f"split has {expected}: give all splits the same ids and names"
            )
    return CocoFolder(splits["train"], splits["valid"], splits.get("test"))


def _patterns(split: str) -> Iterator[str]:
    """Where the annotations of a split may be, relative to the folder, best first."""
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
                f"'{root / pattern}' are several files, {[file.name for file in files]}: which of "
                f"them is {split!r} cannot be told; leave one there"
            )
        if files:
            return files[0]
    return None


def _read(root: Path, split: str, annotations: Path) -> Split:
    try:
        coco = json.loads(annotations.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{annotations}' is no JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(coco, dict) or not all(isinstance(coco.get(key), list) for key in lists):
        raise ValueError(f"'{annotations}' is not in COCO's format: it needs the lists {lists}")
    if not coco["images"]:
        raise ValueError(f"'{annotations}' lists no image")
    return Split(annotations, _image_folder(root, split, annotations, coco), coco)


def _image_folder(root: Path, split: str, annotations: Path, coco: dict[str, Any]) -> Path:
    """The first of the usual folders that has the file's first image."""
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
    looked_in = "\n".join(f"  {folder}" for folder in dict.fromkeys(folders))
    raise FileNotFoundError(
        f"the image {first!r} of '{annotations}' was not found; looked in\n{looked_in}"
    )


def _without_groups(splits: dict[str, Split]) -> dict[str, Split]:
    """Without classes that only name the group of others, which Roboflow's files list as well."""
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
