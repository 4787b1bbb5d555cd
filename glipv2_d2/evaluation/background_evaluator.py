"""Run an evaluator in a background thread during inference."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.modeling.input_checks import note_images

# Batches in the queue of the evaluator; with masks they take memory.
_MAX_PENDING = 4


class BackgroundEvaluator(DatasetEvaluator):
    """Processes outputs in a wrapped evaluator in a background thread, in order.

    Inference does not wait until masks are encoded or captions compared. An error of the evaluator
    is raised by one of the next calls, at the latest by :meth:`evaluate`, with the images of its
    batch; pending batches are dropped.
    """

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.evaluator = evaluator
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluator")
        self._pending: deque[Future[None]] = deque()

    def reset(self) -> None:
        self._drop()
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self._wait_until(max_pending=_MAX_PENDING - 1)
        self._pending.append(self._thread.submit(self._process, inputs, outputs))

    def evaluate(self) -> Any:
        self._wait_until(max_pending=0)
        return self.evaluator.evaluate()

    # Gradient mode is set per thread.
    @torch.no_grad()
    def _process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        try:
            self.evaluator.process(inputs, outputs)
        except Exception as error:
            note_images(error, inputs)
            raise

    def _wait_until(self, max_pending: int) -> None:
        """Wait until at most ``max_pending`` batches are pending."""
        try:
            while len(self._pending) > max_pending:
                self._pending.popleft().result()
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """Cancel pending batches and wait for the running one."""
        for processing in self._pending:
            processing.cancel()
        wait(self._pending)
        self._pending.clear()
