"""Metrics and pictures of a training for Weights & Biases and MLflow (``WRITERS``).

The packages are imported when a training uses them. Their environment variables apply:
``WANDB_MODE=offline``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``.
"""

from __future__ import annotations

import importlib
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

# MLflow refuses other characters in the name of a metric, and of an image.
_NOT_IN_METRICS = re.compile(r"[^\w\-./ :]")
_NOT_IN_IMAGES = re.compile(r"[^\w\-./ ]", re.ASCII)
# Detectron2 smooths losses over as many iterations.
_WINDOW = 20


class ExperimentWriter(EventWriter):
    """Sends what is new in Detectron2's storage. Register it before Detectron2's own writers,
    which clear the pictures.
    """

    def __init__(self) -> None:
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                new.setdefault(iteration, {})[_NOT_IN_METRICS.sub("_", name)] = float(value)
        images = storage._vis_data
        # In order: W&B drops what is of an earlier iteration.
        for iteration in sorted({*new, *(at for *_, at in images)}):
            for name, image, at in images:
                if at == iteration:
                    pixels = np.moveaxis(np.asarray(image), 0, -1)
                    self.send_image(_NOT_IN_IMAGES.sub("_", name), pixels, iteration)
            if iteration in new:
                self.send_metrics(new[iteration], iteration)
        self._last_write = max([self._last_write, *new])

    @abstractmethod
    def send_metrics(self, values: dict[str, float], iteration: int) -> None: ...

    @abstractmethod
    def send_image(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """
        Args:
            pixels: (H, W, 3) RGB.
        """


class WandbWriter(ExperimentWriter):
    """Weights & Biases: https://docs.wandb.ai/ref/python."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.wandb = _load("wandb")
        folder = Path(cfg.OUTPUT_DIR)
        self.run = self.wandb.init(name=folder.name, dir=str(folder), config=_settings(cfg))

    def send_metrics(self, values: dict[str, float], iteration: int) -> None:
        self.run.log(values, step=iteration)

    def send_image(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self.run.log({name: self.wandb.Image(pixels)}, step=iteration)

    def close(self) -> None:
        self.run.finish()


class MlflowWriter(ExperimentWriter):
    """MLflow: https://mlflow.org/docs/latest/python_api/mlflow.html."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.mlflow = _load("mlflow")
        self.mlflow.start_run(run_name=Path(cfg.OUTPUT_DIR).name)
        self.mlflow.log_params(_settings(cfg))

    def send_metrics(self, values: dict[str, float], iteration: int) -> None:
        self.mlflow.log_metrics(values, step=iteration)

    def send_image(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        self.mlflow.log_image(pixels, key=name, step=iteration)

    def close(self) -> None:
        self.mlflow.end_run()


WRITERS: dict[str, Callable[[CfgNode], ExperimentWriter]] = {
    "wandb": WandbWriter,
    "mlflow": MlflowWriter,
}


def check_writers(names: Sequence[str]) -> None:
    """Check before a training that its writers exist.

    Raises:
        ValueError: a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in WRITERS:
            raise ValueError(f"WRITERS has {name!r}; choose among {sorted(WRITERS)}")
        _load(name)


def build_experiment_writers(cfg: CfgNode) -> list[EventWriter]:
    """The writers of ``cfg.WRITERS``; errors as of :func:`check_writers`."""
    check_writers(cfg.WRITERS)
    return [WRITERS[name](cfg) for name in cfg.WRITERS]


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"WRITERS has {package!r}, which is not installed: pip install {package}"
        ) from error


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """What distinguishes trainings."""
    solver = cfg.SOLVER
    return {
        "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS,
        "MODEL.TUNING.NAME": cfg.MODEL.TUNING.NAME,
        "DATASETS.TRAIN": ", ".join(cfg.DATASETS.TRAIN),
        "SOLVER.BASE_LR": solver.BASE_LR,
        "SOLVER.IMS_PER_BATCH": solver.IMS_PER_BATCH,
        "SOLVER.MAX_ITER": solver.MAX_ITER,
        "SEED": cfg.SEED,
    }
