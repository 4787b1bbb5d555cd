"""Speed and memory of a training, written to TensorBoard and metrics.json."""

from __future__ import annotations

import json
from typing import IO, Any

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import JSONWriter

from glipv2_d2.engine.host_memory import peak_resident_bytes
from glipv2_d2.file_writing import dump_json


class MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json, with null in place of nan, which JSON does not have."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        attributes = self.__dict__
        attributes["_file_handle"] = _ValidLines(attributes["_file_handle"])


class _ValidLines:
    """A text file that replaces nan in the lines of JSON that are written to it."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(dump_json(json.loads(line)) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class ResourceMetrics(HookBase):
    """Images per second over all processes, and the peak memory of this process.

    Register it after Detectron2's IterationTimer, which measures ``time`` from the third iteration
    on. Detectron2's CommonMetricPrinter writes the remaining time as ``eta_seconds``.
    """

    def __init__(self, images_per_iteration: int, device: torch.device) -> None:
        """
        Args:
            images_per_iteration: over all processes.
            device: whose memory is measured; for the CPU, the resident memory of the process.
        """
        self.images_per_iteration = images_per_iteration
        self.device = device

    def after_step(self) -> None:
        storage = self.trainer.storage
        seconds, iteration = storage.latest().get("time", (0.0, -1))
        if iteration == storage.iter:
            storage.put_scalar("images_per_second", self.images_per_iteration / seconds)
        storage.put_scalar("max_mem_mb", self._peak_bytes() / 2**20, smoothing_hint=False)

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()
