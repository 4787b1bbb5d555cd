"""Access to the records of a registered dataset by id."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetCatalog

from glipv2_d2.structures import fields


def records_by_id(dataset_name: str, key: str) -> dict[Any, dict[str, Any]]:
    """Id -> record of a registered dataset, in order.

    Args:
        key: the field of the id.

    Raises:
        ValueError: a record without an id, or two records with the same id.
    """
    records: dict[Any, dict[str, Any]] = {}
    for record in DatasetCatalog.get(dataset_name):
        file_name = record.get(fields.FILE_NAME)
        if key not in record:
            raise ValueError(
                f"dataset {dataset_name!r}: the record of image {file_name!r} has no {key!r}, "
                "which identifies its result: add one, or set another evaluator_type"
            )
        first = records.setdefault(record[key], record)
        if first is not record:
            raise ValueError(
                f"dataset {dataset_name!r} has the {key} {record[key]!r} twice, for images "
                f"{first.get(fields.FILE_NAME)!r} and {file_name!r}: it must be unique"
            )
    return records
