"""The records of a data set, as the model's outputs are compared with them."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetCatalog

from glipv2_d2.structures import fields


def records_by_id(dataset_name: str, key: str) -> dict[Any, dict[str, Any]]:
    """The records of a registered data set, in order.

    Args:
        key: of a record, what its output is known by.

    Raises:
        ValueError: a record has no id, or that of another one: outputs could not be told apart.
    """
    found: dict[Any, dict[str, Any]] = {}
    for record in DatasetCatalog.get(dataset_name):
        file_name = record.get(fields.FILE_NAME)
        if key not in record:
            raise ValueError(
                f"data set {dataset_name!r}: the record of image {file_name!r} has no {key!r}, by "
                "which its result is known: give it one, or the data set another evaluator_type"
            )
        first = found.setdefault(record[key], record)
        if first is not record:
            raise ValueError(
                f"data set {dataset_name!r} has the {key} {record[key]!r} twice, of images "
                f"{first.get(fields.FILE_NAME)!r} and {file_name!r}: give every record its own"
            )
    return found
