"""The tasks of a record: what a model predicts for its image."""

from __future__ import annotations

from glipv2_d2.data.registration import Record
from glipv2_d2.structures import QueryKind, fields

LOCALIZATION_TASKS = frozenset({QueryKind.DETECT, QueryKind.GROUND})
TEXT_TASKS = frozenset(kind for kind in QueryKind if kind.is_text_task)


def record_tasks(record: Record) -> frozenset[QueryKind]:
    """The tasks of a record, determined by its keys.

    ``question`` and ``target_captions`` each add a text task. A record with ``annotations``, or
    without a text task, also localizes: the phrases of its ``caption``, or else class names.

    >>> [task.name for task in record_tasks({"question": "is it red?"})]
    ['ANSWER']
    >>> sorted(task.name for task in record_tasks({"question": "is it red?", "annotations": []}))
    ['ANSWER', 'DETECT']
    """
    tasks = set()
    if fields.QUESTION in record:
        tasks.add(QueryKind.ANSWER)
    if fields.TARGET_CAPTIONS in record:
        tasks.add(QueryKind.CAPTION)
    if not tasks or "annotations" in record:
        tasks.add(QueryKind.GROUND if fields.CAPTION in record else QueryKind.DETECT)
    return frozenset(tasks)


def is_text_only(record: Record) -> bool:
    """Whether a record has text tasks only: no boxes are predicted or trained on."""
    return not record_tasks(record) & LOCALIZATION_TASKS
