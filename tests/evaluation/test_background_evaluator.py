from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.evaluation.background_evaluator import _MAX_PENDING, BackgroundEvaluator


class Recorder(DatasetEvaluator):
    """Blocks before each batch until allowed; records image ids and the gradient mode."""

    def __init__(self) -> None:
        self.may_continue = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.image_ids: list[int] = []
        self.gradients: list[bool] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        assert self.may_continue.wait(timeout=20)
        if outputs[0]["score"] is None:
            raise ValueError(f"image {inputs[0]['image_id']} has no score")
        self.image_ids.append(inputs[0]["image_id"])
        self.gradients.append(torch.is_grad_enabled())

    def evaluate(self) -> list[int]:
        return self.image_ids


def process(evaluator: DatasetEvaluator, image_id: int, score: float | None = 0.5) -> None:
    evaluator.process([{"image_id": image_id}], [{"score": score}])


def test_process_does_not_block_and_keeps_the_order() -> None:
    recorder = Recorder()
    evaluator = BackgroundEvaluator(recorder)
    evaluator.reset()
    for image_id in range(_MAX_PENDING):
        process(evaluator, image_id)
    assert recorder.image_ids == [], "process returned before the evaluator ran"
    recorder.may_continue.set()
    process(evaluator, 100)
    assert evaluator.evaluate() == [*range(_MAX_PENDING), 100]
    assert not any(recorder.gradients)


def test_the_number_of_pending_batches_is_limited() -> None:
    recorder = Recorder()
    evaluator = BackgroundEvaluator(recorder)
    for image_id in range(_MAX_PENDING):
        process(evaluator, image_id)
    threading.Timer(0.2, recorder.may_continue.set).start()
    process(evaluator, 100)
    assert recorder.may_continue.is_set(), "process waited for the first batch"
    evaluator.evaluate()


def test_an_error_is_raised_by_evaluate() -> None:
    recorder = Recorder()
    recorder.may_continue.set()
    evaluator = BackgroundEvaluator(recorder)
    process(evaluator, 7, score=None)
    with pytest.raises(ValueError, match="image 7 has no score"):
        evaluator.evaluate()


def test_an_error_names_the_images_of_its_batch() -> None:
    recorder = Recorder()
    evaluator = BackgroundEvaluator(recorder)
    evaluator.process([{"image_id": 7, "file_name": "seven.jpg"}], [{"score": None}])
    recorder.may_continue.set()
    with pytest.raises(ValueError, match="image 7 has no score") as caught:
        evaluator.evaluate()
    assert caught.value.__notes__ == ["images of the batch: 'seven.jpg'"]


def test_batches_after_an_error_are_dropped() -> None:
    recorder = Recorder()
    evaluator = BackgroundEvaluator(recorder)
    process(evaluator, 1, score=None)
    process(evaluator, 2)
    process(evaluator, 3)
    recorder.may_continue.set()
    with pytest.raises(ValueError, match="image 1 has no score"):
        evaluator.evaluate()
    evaluator.reset()
    process(evaluator, 4)
    assert evaluator.evaluate() == [4]


def test_reset_discards_an_error_that_was_not_raised() -> None:
    recorder = Recorder()
    recorder.may_continue.set()
    evaluator = BackgroundEvaluator(recorder)
    process(evaluator, 1, score=None)
    evaluator.reset()
    process(evaluator, 2)
    assert evaluator.evaluate() == [2]


def test_reset_discards_pending_batches() -> None:
    recorder = Recorder()
    recorder.may_continue.set()
    evaluator = BackgroundEvaluator(recorder)
    process(evaluator, 1)
    evaluator.reset()
    process(evaluator, 2)
    assert evaluator.evaluate() == [2]
