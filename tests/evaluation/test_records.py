"""Records are identified by unique ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glipv2_d2.evaluation.captions import CaptionEvaluator
from glipv2_d2.evaluation.records import records_by_id
from glipv2_d2.evaluation.refcoco import RefCOCOEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator

Register = Callable[..., str]


def record(number: int, **ids: Any) -> dict[str, Any]:
    return {"file_name": f"{number}.jpg", "image_id": number, **ids}


def test_records_keep_their_order(register: Register) -> None:
    records = [record(2), record(1)]
    assert list(records_by_id(register(records), "image_id").items()) == [
        (2, records[0]),
        (1, records[1]),
    ]


@pytest.mark.parametrize("evaluator", [VQAEvaluator, CaptionEvaluator, RefCOCOEvaluator])
def test_a_duplicate_id_raises_an_error(evaluator: type, register: Register) -> None:
    records = [record(1, question_id=7), record(2, question_id=7) | {"image_id": 1}]
    with pytest.raises(ValueError, match=r"_id [17] twice, for images '1\.jpg' and '2\.jpg'"):
        evaluator(register(records), "output")


def test_a_record_without_an_id_raises_an_error(register: Register) -> None:
    with pytest.raises(ValueError, match=r"image '1\.jpg' has no 'question_id'"):
        VQAEvaluator(register([record(1)]), "output")
