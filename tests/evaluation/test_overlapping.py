from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.evaluation import overlapping
from glipv2_d2.evaluation.overlapping import OverlappingEvaluator


class Recorder(DatasetEvaluator):
    """Waits for a permission before each batch, and remembers the images and the setting."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.seen: list[int] = []
        self.gradients: list[bool] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        assert self.may_go_on.wait(timeout=20)
        if outputs[0]["score"] is None:
            raise ValueError(f"image {inputs[0]['image_id']} has no score")
        self.seen.append(inputs[0]["image_id"])
        self.gradients.append(torch.is_grad_enabled())

    def evaluate(self) -> list[int]:
        return self.seen


def process(evaluator: DatasetEvaluator, image_id: int, score: float | None = 0.5) -> None:
    evaluator.process([{"image_id": image_id}], [{"score": score}])


def test_the_caller_goes_on_and_the_order_stays() -> None:
    recorder = Recorder()
    evaluator = OverlappingEvaluator(recorder)
    evaluator.reset()
    for image_id in range(overlapping._MOST_WAITING):
        process(evaluator, image_id)
    assert recorder.seen == [], "nothing was waited for"
    recorder.may_go_on.set()
    process(evaluator, 100)
    assert evaluator.evaluate() == [*range(overlapping._MOST_WAITING), 100]
    assert not any(recorder.gradients)


def test_few_batches_wait() -> None:
    recorder = Recorder()
    evaluator = OverlappingEvaluator(recorder)
    for image_id in range(overlapping._MOST_WAITING):
        process(evaluator, image_id)
    threading.Timer(0.2, recorder.may_go_on.set).start()
    process(evaluator, 100)
    assert recorder.may_go_on.is_set(), "the first had to be done"
    evaluator.evaluate()


def test_an_error_comes_out() -> None:
    recorder = Recorder()
    recorder.may_go_on.set()
    evaluator = OverlappingEvaluator(recorder)
    process(evaluator, 7, score=None)
    with pytest.raises(ValueError, match="image 7 has no score"):
        evaluator.evaluate()


def test_batches_behind_an_error_are_dropped() -> None:
    recorder = Recorder()
    evaluator = OverlappingEvaluator(recorder)
    process(evaluator, 1, score=None)
    process(evaluator, 2)
    process(evaluator, 3)
    recorder.may_go_on.set()
    with pytest.raises(ValueError, match="image 1 has no score"):
        evaluator.evaluate()
    evaluator.reset()
    process(evaluator, 4)
    assert evaluator.evaluate() == [4]


def test_reset_after_an_error_nobody_asked_about_is_a_new_start() -> None:
    recorder = Recorder()
    recorder.may_go_on.set()
    evaluator = OverlappingEvaluator(recorder)
    process(evaluator, 1, score=None)
    evaluator.reset()
    process(evaluator, 2)
    assert evaluator.evaluate() == [2]


def test_reset_forgets_what_was_on_its_way() -> None:
    recorder = Recorder()
    recorder.may_go_on.set()
    evaluator = OverlappingEvaluator(recorder)
    process(evaluator, 1)
    evaluator.reset()
    process(evaluator, 2)
    assert evaluator.evaluate() == [2]
