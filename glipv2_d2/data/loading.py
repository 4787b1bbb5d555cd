"""Registered datasets: their records, and what they are called in prompts."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from glipv2_d2.data.registration import Record, StreamedRecords, missing_paths
from glipv2_d2.data.sanitize import iterate_sanitized
from glipv2_d2.structures import fields
from glipv2_d2.text.names import check_names
from glipv2_d2.text.prompts import Decoration
from glipv2_d2.text.tokenizer import Tokenizer


def load_dataset(name: str, *, filter_empty: bool) -> list[dict[str, Any]]:
    """Load the records of a registered dataset, each with its ``dataset_name``.

    Args:
        filter_empty: drop images that have only crowd annotations.

    Raises:
        ValueError: the dataset is not registered, or has no usable image.
        FileNotFoundError: an annotation file or image directory does not exist.
    """
    check_registered(name)
    check_paths(name)
    try:
        records = get_detection_dataset_dicts([name], filter_empty=filter_empty)
    # Detectron2 asserts that there are images, also after it dropped those without boxes.
    except AssertionError as error:
        raise ValueError(
            f"dataset {name!r} has no usable image ({error}): glipv2 check-data "
            f"--dataset {name} shows why"
        ) from error
    return [{**record, fields.DATASET_NAME: name} for record in records]


def check_registered(name: str) -> None:
    """Raise a ValueError if no dataset has the name."""
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list())
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "register it first"
        raise ValueError(f"dataset {name!r} is not registered: {hint}")


def iterate_training_records(
    name: str, *, filter_empty: bool, separator: str, tokenizer: Tokenizer
) -> Iterator[Record]:
    """The sanitized records of a registered dataset, one by one.

    They are those of :func:`load_dataset` and
    :func:`~glipv2_d2.data.sanitize.sanitize_dataset`. Readers of
    :class:`~glipv2_d2.data.registration.StreamedRecords` are not in memory at once.

    Args:
        filter_empty: drop images that have only crowd annotations.
        separator: of the class names in a prompt.

    Raises:
        ValueError, FileNotFoundError: as those functions, or a class name is invalid.
    """
    check_registered(name)
    check_paths(name)
    load = DatasetCatalog[name]
    records = load.iterate() if isinstance(load, StreamedRecords) else iter(load())
    # The reader sets the class names before it returns the first record.
    first = list(itertools.islice(records, 1))
    check_class_names(class_names_of([name]), separator)
    records = itertools.chain(first, records)
    if filter_empty and any("annotations" in record for record in first):
        records = filter(_has_objects, records)
    return iterate_sanitized(
        records, name=name, class_names=names_in_prompts(name), tokenizer=tokenizer
    )


def _has_objects(record: Record) -> bool:
    """Whether Detectron2 keeps an image; a record without ``annotations`` has a text task."""
    annotations = record.get("annotations")
    return annotations is None or any(not a.get("iscrowd", 0) for a in annotations)


def check_paths(name: str) -> None:
    """Raise a FileNotFoundError if a file or directory of a registered dataset does not exist."""
    for path in missing_paths(name):
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"dataset {name!r}: {path!r} does not exist. Prepare it as described in "
            "datasets/README.md, or set the environment variable DETECTRON2_DATASETS to the "
            f"directory that contains it (now {root!r})"
        )


def class_names_of(dataset_names: Sequence[str]) -> dict[str, list[str]]:
    """Class names per dataset, empty for captions. Readers set them, so load the datasets first."""
    return {name: MetadataCatalog.get(name).get("thing_classes") or [] for name in dataset_names}


def names_in_prompts(dataset_name: str) -> list[str]:
    """The class names of a dataset as its custom prompt texts, if it has them, spell them."""
    decorations = decorations_of([dataset_name]).get(dataset_name, [])
    return [decoration.name for decoration in decorations] or class_names_of([dataset_name])[
        dataset_name
    ]


def check_class_names(class_names: dict[str, list[str]], separator: str) -> None:
    """Raise now what would otherwise stop training once a prompt contains an invalid name."""
    for dataset_name, names in class_names.items():
        try:
            if names:
                check_names(names, separator)
        except ValueError as error:
            raise ValueError(f"dataset {dataset_name!r}: {error}") from error


def decorations_of(dataset_names: Iterable[str]) -> dict[str, list[Decoration]]:
    """Prompt texts of the classes, for datasets that have them."""
    found = {name: MetadataCatalog.get(name).get("decorations") for name in dataset_names}
    return {name: decorations for name, decorations in found.items() if decorations}
