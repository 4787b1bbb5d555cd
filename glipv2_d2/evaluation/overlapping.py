"""Evaluators that work on one image while the model sees the next."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

# Batches that may wait for the evaluator: with their masks they take memory.
_MOST_WAITING = 4


class OverlappingEvaluator(DatasetEvaluator):
    """Hands what the model said to an evaluator in a thread, batch by batch in their order.

    The model need not wait until masks are encoded or captions compared. An error of the evaluator
    comes out of one of the next calls, of :meth:`evaluate` at the latest; batches behind it are
    dropped.
    """

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.evaluator = evaluator
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluator")
        self._waiting: deque[Future[None]] = deque()

    def reset(self) -> None:
        self._drop()
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self._finish(most_waiting=_MOST_WAITING - 1)
        self._waiting.append(self._thread.submit(self._process, inputs, outputs))

    def evaluate(self) -> Any:
        self._finish(most_waiting=0)
        return self.evaluator.evaluate()

    # Whether gradients are computed is a setting of each thread.
    @torch.no_grad()
    def _process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.evaluator.process(inputs, outputs)

    def _finish(self, most_waiting: int) -> None:
        """Wait until so few batches are left."""
        try:
            while len(self._waiting) > most_waiting:
                self._waiting.popleft().result()
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """Leave no batch in the thread."""
        for processing in self._waiting:
            processing.cancel()
        wait(self._waiting)
        self._waiting.clear()
