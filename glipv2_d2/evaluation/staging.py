"""Write the result files of an evaluation atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class StagedEvaluator(DatasetEvaluator):
    """Runs an evaluator in a staging folder, and moves its files to the output folder at the end.

    The main process creates the staging folder; the others wait for it.
    """

    def __init__(
        self, make_evaluator: Callable[[str], DatasetEvaluator], output_folder: Path
    ) -> None:
        """
        Args:
            make_evaluator: output folder -> evaluator.
            output_folder: final folder of the result files; created if missing.
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
