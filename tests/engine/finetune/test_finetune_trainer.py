"""The trainer of fine-tuning: its length in a limited time, and its schedule."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventWriter, get_event_storage
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import write_coco

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.finetune.finetune_trainer import (
    MAX_LIMITED_ITERATIONS,
    FinetuneTrainer,
    Progress,
    StepHook,
    Terminated,
)
from glipv2_d2.engine.finetune.time_plan import Plan, TimeLimit
from glipv2_d2.engine.finetune.tuning import read_delta
from glipv2_d2.engine.setup import load_config


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Eight iterations with an evaluation after each fourth."""
    annotations, images = write_coco(tmp_path, num_images=4)
    name = f"finetune_trainer_{tmp_path.name}"
    register_custom([{"name": name, "json": str(annotations), "images": str(images)}])
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, name, str(tmp_path / "output"))
    cfg.SOLVER.EMA_DECAY = 0.0
    cfg.SOLVER.BEST_METRIC = "bbox/AP"
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.MODEL.TUNING.NAME = "full"
    cfg.MODEL.WEIGHTS = str(tmp_path / "base.pth")
    torch.manual_seed(0)
    save_weights(MeanColour(cfg), tmp_path / "base.pth")
    return cfg


def limited(cfg: CfgNode, seconds: float, **options: object) -> FinetuneTrainer:
    cfg.SOLVER.MAX_ITER = cfg.TEST.EVAL_PERIOD = MAX_LIMITED_ITERATIONS
    cfg.SOLVER.CHECKPOINT_PERIOD = MAX_LIMITED_ITERATIONS
    limit = TimeLimit(time.monotonic() + seconds, after_training=0.0)
    return FinetuneTrainer(cfg, limit=limit, **options)  # type: ignore[arg-type]


def test_the_rate_falls_to_zero_over_a_length_that_is_set_while_training(cfg: CfgNode) -> None:
    trainer = limited(cfg, 1e6)
    rates: list[float] = []

    def note_rate(_: Progress) -> None:
        if trainer.iter == 4:
            trainer.set_plan(Plan(12, 6))
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.on_progress = note_rate
    trainer.train()
    assert len(rates) == 12
    base = cfg.SOLVER.BASE_LR
    assert rates[2] == pytest.approx(base, rel=1e-3)
    assert rates[-1] == pytest.approx(0, abs=0.05 * base)
    assert rates[6:] == sorted(rates[6:], reverse=True)
    evaluations = [line for line in metrics(cfg) if "bbox/AP" in line]
    assert len(evaluations) == 2


def metrics(cfg: CfgNode) -> list[str]:
    return (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()


def test_a_training_without_time_ends_after_an_iteration_with_a_delta(cfg: CfgNode) -> None:
    trainer = limited(cfg, -1.0)
    trainer.train()
    assert trainer.iter == 1
    assert read_delta(Path(cfg.OUTPUT_DIR) / "delta.pth").tensors


def test_the_time_left_counts_evaluations(cfg: CfgNode) -> None:
    seen: list[Progress] = []
    trainer = FinetuneTrainer(
        cfg, evaluation_seconds=100.0, after_training=1000.0, on_progress=seen.append
    )
    trainer.train()
    assert [progress.iteration for progress in seen] == list(range(1, 9))
    assert seen[0].seconds_left is None
    assert seen[2].seconds_left == pytest.approx(1200, abs=60)
    # The measured evaluation took less.
    assert seen[4].seconds_left == pytest.approx(1000, abs=60)
    assert seen[0].best is None and seen[4].best is not None


def test_the_time_left_without_a_length_is_that_to_the_earliest_stop(cfg: CfgNode) -> None:
    seen: list[Progress] = []
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.EARLY_STOP_PATIENCE = 8000, 1
    trainer = FinetuneTrainer(cfg, evaluation_seconds=100.0, on_progress=seen.append)
    trainer._evaluate = lambda: {"bbox": {"AP": -float(trainer.iter)}}  # type: ignore[method-assign]
    trainer.eval_hook._func = trainer._evaluate
    trainer.train()
    assert len(seen) == 8
    assert seen[2].is_minimum and seen[2].num_iterations is None
    # Two evaluations, the second of which may be worse.
    assert seen[2].seconds_left == pytest.approx(200, abs=60)


def test_a_delta_is_written_at_a_new_best(cfg: CfgNode) -> None:
    delta = Path(cfg.OUTPUT_DIR) / "delta.pth"
    written: list[bool] = []
    trainer = FinetuneTrainer(cfg, on_best=lambda: written.append(delta.is_file()))
    trainer.train()
    # Every evaluation equals the best.
    assert written == [True, True]


def test_only_the_last_checkpoint_is_kept_beside_the_best_weights(cfg: CfgNode) -> None:
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True)
    # Of an earlier run that was killed, and a file of the user.
    for name in ("model_0000001.pth", "model_interrupted.pth", "model_mine.pth"):
        (output / name).touch()
    seen: list[set[str]] = []
    trainer = FinetuneTrainer(
        cfg, on_progress=lambda _: seen.append({path.name for path in output.glob("model_0*")})
    )
    trainer.train()
    assert seen[0] == {"model_0000001.pth"} != seen[-1]
    assert all(len(names) == 1 for names in seen)
    left = {path.name for path in output.glob("*.pth")}
    assert left == {"delta.pth", "model_best.pth", "model_final.pth", "model_mine.pth"}


def test_sigterm_does_not_interrupt_a_writer(cfg: CfgNode) -> None:
    """What it has written by half would be left, such as a module that it imports."""
    written: list[int] = []

    class Writer(EventWriter):
        def write(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            written.append(get_event_storage().iter)

    trainer = FinetuneTrainer(cfg)
    writer = next(hook for hook in trainer._hooks if isinstance(hook, PeriodicWriter))
    writer._writers, writer._period = [Writer()], 1
    with pytest.raises(Terminated):
        trainer.train()
    # After the first iteration, and at the end of the training, which the second one is.
    assert written == [0, 1]


def test_sigterm_in_the_last_writer_leaves_out_the_evaluation(cfg: CfgNode) -> None:
    evaluated: list[int] = []
    trainer = FinetuneTrainer(cfg)

    def evaluate() -> dict[str, dict[str, float]]:
        evaluated.append(trainer.iter)
        return {"bbox": {"AP": 1.0}}

    trainer.eval_hook._func = evaluate

    class Writer(EventWriter):
        def write(self) -> None:
            if trainer.iter == trainer.max_iter - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    writer = next(hook for hook in trainer._hooks if isinstance(hook, PeriodicWriter))
    writer._writers, writer._period = [Writer()], 1
    with pytest.raises(Terminated):
        trainer.train()
    assert trainer.iter == trainer.max_iter not in evaluated


def test_sigterm_ends_an_evaluation_at_once_and_a_step_after_it(cfg: CfgNode) -> None:
    trainer = FinetuneTrainer(cfg)
    reached: list[int] = []

    class Terminate(StepHook):
        def before_step(self) -> None:
            if self.trainer.iter == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append(self.trainer.iter)

        def after_step(self) -> None: ...

    trainer.register_hooks([Terminate()])
    with pytest.raises(Terminated):
        trainer.train()
    assert reached == [0, 1]
    assert "model_interrupted" in (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text()

    trainer = FinetuneTrainer(cfg)
    trainer._evaluate = lambda: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[method-assign]
    trainer.eval_hook._func = trainer._evaluate
    with pytest.raises(Terminated):
        trainer.train()
    assert trainer.iter == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
