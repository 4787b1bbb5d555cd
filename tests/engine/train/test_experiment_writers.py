"""Metrics and pictures for Weights & Biases and MLflow, with modules of their published calls."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.engine.train.experiment_writers import build_experiment_writers, check_writers

Calls = list[tuple[Any, ...]]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    run = SimpleNamespace(
        log=lambda values, *, step: calls.append((step, values)),
        finish=lambda: calls.append(("finish",)),
    )
    module = ModuleType("wandb")
    module.__dict__.update(
        init=lambda **options: calls.append(("init", options["name"])) or run,
        Image=lambda pixels: pixels.shape,
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    module = ModuleType("mlflow")
    module.__dict__.update(
        start_run=lambda *, run_name: calls.append(("init", run_name)),
        log_params=lambda params: calls.append(("params", params["SEED"])),
        log_metrics=lambda values, *, step: calls.append((step, values)),
        log_image=lambda image, *, key, step: calls.append((step, {key: image.shape})),
        end_run=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls


def train(package: str) -> None:
    """Two writes, with a picture before the second."""
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.WRITERS, cfg.OUTPUT_DIR, cfg.SEED = [package], "output/mine", 3
    (writer,) = build_experiment_writers(cfg)
    with EventStorage() as storage:
        storage.put_scalar("[metric]loss", 2.0)
        writer.write()
        storage.step()
        storage.put_image("train/Top: Fühler", np.zeros((3, 4, 5), np.uint8))
        storage.put_scalar("bbox/AP-red Fühler: x", 10.0, smoothing_hint=False)
        writer.write()
    writer.close()


EXPECTED = [
    (0, {"_metric_loss": 2.0}),
    (1, {"train/Top_ F_hler": (4, 5, 3)}),
    (1, {"bbox/AP-red Fühler: x": 10.0}),
    ("finish",),
]


def test_wandb_gets_what_is_new_in_the_order_of_iterations(wandb: Calls) -> None:
    train("wandb")
    assert wandb == [("init", "mine"), *EXPECTED]


def test_mlflow_gets_what_is_new_in_the_order_of_iterations(mlflow: Calls) -> None:
    train("mlflow")
    assert mlflow == [("init", "mine"), ("params", 3), *EXPECTED]


def test_missing_packages_and_unknown_writers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        check_writers(["wandb"])
    with pytest.raises(ValueError, match=r"'comet'; choose among \['mlflow', 'wandb'\]"):
        check_writers(["comet"])
