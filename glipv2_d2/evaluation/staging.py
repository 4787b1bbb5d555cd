"""Files of an evaluation that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class StagedEvaluator(DatasetEvaluator):
    """Lets an evaluator write beside its output folder; files appear in it when all are written.

    The main process writes; the others wait for its folder.
    """

    def __init__(
        self, make_evaluator: Callable[[str], DatasetEvaluator], output_folder: Path
    ) -> None:
        """
        Args:
            make_evaluator: a folder for its files -> the evaluator.
            output_folder: of the evaluation; made if need be.
        """
        self.output_folder = output_folder
        self.staging = output_folder.with_name(f".{output_folder.name}.partial")
        if comm.is_main_process():
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
        comm.synchronize()
        self.evaluator = make_evaluator(str(self.staging))

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        results = self.evaluator.evaluate()
        if comm.is_main_process():
            self._publish()
        return results

    def _publish(self) -> None:
        self.output_folder.mkdir(parents=True, exist_ok=True)
        for path in self.staging.iterdir():
            os.replace(path, self.output_folder / path.name)
        self.staging.rmdir()
