"""Finding the splits of a dataset folder in one of the common COCO layouts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from glipv2_d2.data.coco_truth import CocoTruth, read_truth
from glipv2_d2.data.readers.coco import file_name_of
from glipv2_d2.data.readers.odinw import few_shot_file
from glipv2_d2.engine.finetune.splits import SPLIT_NAMES, DatasetFolder, Split, divide
from glipv2_d2.messages import quote
from glipv2_d2.text.names import normalized_name

logger = logging.getLogger(__name__)

ROBOFLOW_FILE = "_annotations.coco.json"

ODINW_FILE = "annotations_without_background.json"
"""Of the ODinW release, beside Roboflow's file and those of few-shot splits."""

FEW_SHOT_PREFIX = "fewshot_"
"""Of the files of few-shot splits, which are no splits of the folder."""

UNDIVIDED = ("annotations/instances_default.json", "result.json")
"""Files without splits: of CVAT and Label Studio."""


def open_coco_folder(root: Path) -> DatasetFolder:
    """Find and load the splits of a folder.

    Supported layouts: ``train/_annotations.coco.json`` beside the images, as exported by Roboflow;
    ``train/annotations_without_background.json`` or ``train_annotations_without_background.json``,
    as in the ODinW release, beside files of few-shot splits (:func:`published_shots`);
    ``annotations/instances_train2017.json``, ``annotations/train.json`` or ``train.json``, with
    images in ``images/train``, ``train`` or ``images``, as COCO and CVAT have them; a single
    ``train/*.json``. ``annotations/instances_default.json`` of CVAT and ``result.json`` of Label
    Studio are divided into two splits.

    Raises:
        FileNotFoundError: a split or its images do not exist; the message lists the searched
            paths.
        ValueError: a file is not in COCO format, or the splits have different classes.
    """
    found = {kind: _find(root, kind) for kind in SPLIT_NAMES}
    undivided = [root / name for name in UNDIVIDED if (root / name).is_file()]
    if found["train"] is None and found["valid"] is None and undivided:
        return _open_undivided(root, undivided[0])
    for kind in ("train", "valid"):
        if found[kind] is None:
            raise FileNotFoundError(
                f"'{root}' has no annotations of the split {kind!r}; searched for\n"
                + "\n".join(searched_files(kind))
            )
    truths = {kind: _load(path) for kind, path in found.items() if path is not None}
    splits = {
        kind: Split(
            Path(truth.path),
            _image_folder(root, kind, truth),
            _with_groups_of_others(truth, truths.values()).to_coco(),
        )
        for kind, truth in truths.items()
    }
    expected = _categories(splits["train"])
    for split in splits.values():
        _check_classes(split, expected)
    return DatasetFolder("COCO", splits["train"], splits["valid"], splits.get("test"))


def published_shots(folder: DatasetFolder, shots: int, seed: int) -> Split | None:
    """The published few-shot split of a folder of the ODinW release; None without its file.

    Raises:
        ValueError: the file is damaged, or has other classes than the training split.
    """
    train = folder.train
    path = train.annotations.with_name(few_shot_file("train", shots, seed))
    if not path.is_file():
        return None
    few = Split(path, train.images, _load(path).to_coco())
    _check_classes(few, _categories(train))
    return few


def _check_classes(split: Split, expected: dict[Any, str]) -> None:
    if _comparable(_categories(split)) != _comparable(expected):
        raise ValueError(
            f"'{split.annotations}' has the classes {quote(_categories(split))}, but the "
            f"training split has {quote(expected)}: all splits must have the same ids and names"
        )


def _open_undivided(root: Path, annotations: Path) -> DatasetFolder:
    truth = _load(annotations)
    split = Split(annotations, _image_folder(root, "default", truth), truth.to_coco())
    train, valid = divide(split)
    note = (
        f"'{annotations.name}' has no splits: {len(valid.coco['images'])} of its "
        f"{len(truth.images)} images, chosen by their names, are for validation"
    )
    logger.warning(note)
    return DatasetFolder("COCO, one file", train, valid, None, [note])


def searched_files(split: str) -> list[str]:
    """The files that are searched for the annotations of a split, for messages."""
    return [f"  {path}" for path in _patterns(split)]


def _patterns(split: str) -> Iterator[str]:
    """Possible annotation files of a split, relative to the folder, in order of preference."""
    for name in SPLIT_NAMES[split]:
        yield f"{name}/{ODINW_FILE}"
        yield f"{name}/{ROBOFLOW_FILE}"
        yield f"{name}_{ODINW_FILE}"
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
            files = [file for file in files if not file.name.startswith(FEW_SHOT_PREFIX)]
        if len(files) > 1:
            raise ValueError(
                f"'{root / pattern}' matches several files, {[file.name for file in files]}: keep "
                f"one for the split {split!r}"
            )
        if files:
            return files[0]
    return None


def _load(annotations: Path) -> CocoTruth:
    truth = read_truth(str(annotations))
    truth.faults.warn(logger, str(annotations))
    if not truth.images:
        raise ValueError(f"'{annotations}' lists no image")
    if not truth.categories or not truth.has_annotations:
        raise ValueError(
            f"'{annotations}' is not in COCO format: it needs the lists annotations and categories"
        )
    return truth


def _image_folder(root: Path, split: str, truth: CocoTruth) -> Path:
    """The first candidate folder that contains the first image of the annotation file."""
    annotations = Path(truth.path)
    stem = annotations.stem.removeprefix("instances_")
    names = dict.fromkeys((stem, *SPLIT_NAMES.get(split, ())))
    folders = [annotations.parent, annotations.parent / "images"]
    folders += [root / "images" / name for name in names]
    folders += [root / name for name in names]
    folders += [root / "images", root]
    first = file_name_of(next(iter(truth.images.values())), truth.path)
    for folder in folders:
        if (folder / first).is_file():
            return folder
    searched = "\n".join(f"  {folder}" for folder in dict.fromkeys(folders))
    raise FileNotFoundError(
        f"the image {first!r} of '{annotations}' does not exist; searched in\n{searched}"
    )


def _with_groups_of_others(truth: CocoTruth, others: Iterable[CocoTruth]) -> CocoTruth:
    """The truth with the groups that are a class of another split, which has boxes of them."""
    classes = {category["id"] for other in others for category in other.categories}
    kept = [group for group in truth.groups if group["id"] in classes]
    categories = sorted([*truth.categories, *kept], key=lambda category: category["id"])
    return replace(truth, categories=categories)


def _comparable(categories: dict[Any, str]) -> dict[Any, str]:
    return {key: normalized_name(str(name)) for key, name in categories.items()}


def _categories(split: Split) -> dict[Any, str]:
    return {category["id"]: category["name"] for category in split.coco["categories"]}
