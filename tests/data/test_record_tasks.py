"""The tasks of a record follow from its keys."""

from __future__ import annotations

import pytest

from glipv2_d2.data.record_tasks import is_text_only, record_tasks
from glipv2_d2.structures import QueryKind


@pytest.mark.parametrize(
    ("keys", "tasks"),
    [
        ((), {QueryKind.DETECT}),
        (("annotations", "classes"), {QueryKind.DETECT}),
        (("annotations", "caption"), {QueryKind.GROUND}),
        (("question",), {QueryKind.ANSWER}),
        (("target_captions",), {QueryKind.CAPTION}),
        (("question", "caption", "annotations"), {QueryKind.ANSWER, QueryKind.GROUND}),
        (("target_captions", "annotations"), {QueryKind.CAPTION, QueryKind.DETECT}),
    ],
)
def test_tasks_of_a_record(keys: tuple[str, ...], tasks: set[QueryKind]) -> None:
    record = dict.fromkeys(keys)
    assert record_tasks(record) == tasks
    assert is_text_only(record) == tasks.isdisjoint({QueryKind.DETECT, QueryKind.GROUND})
