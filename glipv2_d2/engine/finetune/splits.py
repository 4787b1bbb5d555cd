"""The splits of a dataset folder: images and annotations in COCO's format."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLIT_NAMES = {
    "train": ("train", "Train"),
    "valid": ("valid", "val", "validation", "Validation"),
    "test": ("test", "Test"),
}
"""Split -> accepted names, in order of preference; in COCO's files also with a year."""

VALID_SHARE = 5
"""Of a folder without splits, about one image of this many is for validation (our choice)."""


@dataclass(frozen=True)
class Split:
    """One split of a folder.

    Attributes:
        annotations: the annotation file.
        images: the folder to which the file names of images are relative.
        coco: sound contents of the annotation file, without group categories.
    """

    annotations: Path
    images: Path
    coco: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their ids, as at inference."""
        return [c["name"] for c in sorted(self.coco["categories"], key=lambda c: c["id"])]


@dataclass(frozen=True)
class DatasetFolder:
    """The splits of a folder, which share classes and ids.

    Attributes:
        layout: what the folder was recognised as, for the report.
        test: None if the folder has no test split.
        notes: what the user should know about the data.
    """

    layout: str
    train: Split
    valid: Split
    test: Split | None
    notes: Sequence[str] = field(default=())


def divide(split: Split) -> tuple[Split, Split]:
    """Divide the images into training and validation by a hash of their file names.

    More images change the division of the others only if it would be empty.

    Raises:
        ValueError: fewer than two images have boxes.
    """
    coco = split.coco
    with_boxes = {a["image_id"] for a in coco["annotations"] if not a.get("iscrowd", 0)}
    if len(with_boxes) < 2:
        raise ValueError(
            f"'{split.annotations}' has {len(with_boxes)} images with boxes: at least two are "
            "needed, for training and validation"
        )

    def order(image: dict[str, Any]) -> int:
        name = str(image["file_name"]).encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")

    chosen = {image["id"] for image in coco["images"] if order(image) % VALID_SHARE == 0}
    if not chosen & with_boxes or chosen >= with_boxes:
        candidates = [image for image in coco["images"] if image["id"] in with_boxes]
        count = max(1, len(candidates) // VALID_SHARE)
        chosen = {image["id"] for image in sorted(candidates, key=order)[:count]}
    return _part(split, chosen, is_in=False), _part(split, chosen, is_in=True)


def _part(split: Split, chosen: set[Any], *, is_in: bool) -> Split:
    coco = split.coco
    images = [image for image in coco["images"] if (image["id"] in chosen) == is_in]
    annotations = [a for a in coco["annotations"] if (a["image_id"] in chosen) == is_in]
    return Split(
        split.annotations, split.images, {**coco, "images": images, "annotations": annotations}
    )
