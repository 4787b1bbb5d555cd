"""Samples with several text tasks of one image, so that the image is encoded once for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glipv2_d2.data.record_store import RecordStore
from glipv2_d2.data.record_tasks import is_text_only
from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields

# The keys of a text task that stay with it when records are merged.
_TEXT_KEYS = (
    fields.FILE_NAME,
    # One file may be listed under several image ids.
    fields.IMAGE_ID,
    fields.DATASET_NAME,
    fields.QUESTION,
    fields.QUESTION_ID,
    fields.ANSWERS,
    fields.TARGET_CAPTIONS,
)


def merge_texts_per_image(
    records_of: Mapping[str, Sequence[Record]], limit: int, factor_of: Mapping[str, float]
) -> dict[str, Sequence[Record]]:
    """Merge text-only records of the same image; other records are returned as they are.

    The first record of an image gets up to ``limit`` - 1 further text tasks in its ``more``; the
    rest start another record. So an image with many questions is still sampled more often than
    one with few. Records of several datasets are merged if these have the same repeat factor.

    Args:
        records_of: dataset name -> records.
        limit: maximum number of text tasks per merged record; 1 merges nothing.
        factor_of: dataset name -> repeat factor, default 1.

    Returns:
        dataset name -> merged records. A merged record belongs to the dataset of its first text;
        a dataset may have none. A store without text-only records is returned as it is.
    """
    if limit <= 1:
        return dict(records_of)
    merged_of: dict[str, Sequence[Record]] = {}
    open_of: dict[tuple[float, str], Record] = {}
    for name, records in records_of.items():
        if isinstance(records, RecordStore) and not records.has_text_only:
            merged_of[name] = records
            continue
        merged: list[Record] = []
        merged_of[name] = merged
        factor = factor_of.get(name, 1.0)
        for record in records:
            if not is_text_only(record):
                merged.append(record)
                continue
            key = (factor, record[fields.FILE_NAME])
            first = open_of.get(key)
            if first is None or len(first[fields.MORE]) >= limit - 1:
                open_of[key] = {**record, fields.MORE: []}
                merged.append(open_of[key])
            else:
                first[fields.MORE].append(_text_fields(record))
    return merged_of


def split_texts(batch: Sequence[Record]) -> list[Record]:
    """One input dict per text task of merged records; those of one image share its tensor."""
    inputs = []
    for record in batch:
        texts = [_text_fields(record), *record.get(fields.MORE, [])]
        image = {k: v for k, v in record.items() if k not in (*_TEXT_KEYS, fields.MORE)}
        inputs += [image | text for text in texts]
    return inputs


def _text_fields(record: Record) -> Record:
    return {key: record[key] for key in _TEXT_KEYS if key in record}
