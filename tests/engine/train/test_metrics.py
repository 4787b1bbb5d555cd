"""The metrics that a training writes."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glipv2_d2.engine.train.metrics import ResourceMetrics
from glipv2_d2.engine.train.trainer import Trainer

# Metrics written by Detectron2, and those that GLIPv2 adds.
DETECTRON2_METRICS = {"total_loss", "lr", "time", "data_time", "rank_data_time", "eta_seconds"}
ADDED_METRICS = {"images_per_second", "max_mem_mb"}


def test_metrics_are_in_the_json_file_and_in_tensorboard(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    output = Path(cfg.OUTPUT_DIR)

    lines = (output / "metrics.json").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert metrics.keys() == {*DETECTRON2_METRICS, *ADDED_METRICS, "iteration"}
    # A process with torch needs more.
    assert metrics["max_mem_mb"] > 50

    events = EventAccumulator(str(output)).Reload()
    assert set(events.Tags()["scalars"]) == DETECTRON2_METRICS | ADDED_METRICS
    (max_mem,) = events.Scalars("max_mem_mb")
    assert max_mem.step == metrics["iteration"] == 7
    assert max_mem.value == pytest.approx(metrics["max_mem_mb"])


def test_images_per_second_follow_from_the_time_of_an_iteration() -> None:
    storage = EventStorage()
    hook = ResourceMetrics(images_per_iteration=4, device=torch.device("cpu"))
    hook.trainer = types.SimpleNamespace(storage=storage)
    hook.after_step()
    # Detectron2 does not time the first iterations.
    assert "images_per_second" not in storage.latest()
    storage.put_scalar("time", 0.5)
    hook.after_step()
    assert storage.latest()["images_per_second"] == (8.0, 0)
