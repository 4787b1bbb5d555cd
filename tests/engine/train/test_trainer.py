"""Training, resumption, and the rules that follow a metric."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from glipv2_d2.checkpoint import GLIPv2Checkpointer, save_weights
from glipv2_d2.engine.train.best_checkpoint import BestMetricHook
from glipv2_d2.engine.train.trainer import Trainer


class Interrupted(Exception):
    pass


class StopBefore(HookBase):
    """Interrupts the run between two checkpoints, as a kill does."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise Interrupted


class Record(HookBase):
    """Records the loss and learning rate of every iteration."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[float, float]] = {}

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.values[self.trainer.iter] = (latest["total_loss"][0], latest["lr"][0])


def train(cfg: CfgNode, *, resume: bool = False, stop_before: int | None = None) -> Record:
    trainer = Trainer(cfg)
    record = Record()
    trainer.register_hooks([record])
    if stop_before is not None:
        trainer.register_hooks([StopBefore(stop_before)])
    trainer.resume_or_load(resume=resume)
    with contextlib.suppress(Interrupted):
        trainer.train()
    return record


def final(cfg: CfgNode) -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("seed", [3, -1], ids=["seeded", "unseeded"])
def test_a_resumed_run_equals_an_uninterrupted_one(cfg: CfgNode, tmp_path: Path, seed: int) -> None:
    cfg.SEED = 3
    torch.manual_seed(0)
    whole = train(cfg)
    expected = final(cfg)

    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    torch.manual_seed(0)
    train(cfg, stop_before=5)
    # A run without a seed loads it from the checkpoint.
    cfg.SEED = seed
    torch.manual_seed(99)
    resumed = train(cfg, resume=True)

    assert set(resumed.values) == {3, 4, 5, 6, 7}
    assert resumed.values == {i: whole.values[i] for i in resumed.values}
    for part in ("model", "model_ema"):
        for name, value in final(cfg)[part].items():
            assert torch.equal(value, expected[part][name]), name


def test_checkpoints_contain_weights_and_average(cfg: CfgNode) -> None:
    train(cfg)
    checkpoint = final(cfg)
    assert set(checkpoint["model"]) - set(checkpoint["model_ema"]) == {"frozen"}
    weight = "backbone.weight"
    assert not torch.equal(checkpoint["model"][weight], checkpoint["model_ema"][weight])


def test_a_non_finite_loss_is_an_error_before_the_weights_change(cfg: CfgNode) -> None:
    cfg.SOLVER.EMA_DECAY = 0.0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    with torch.no_grad():
        trainer.model.backbone.bias.fill_(float("inf"))
    before = trainer.model.backbone.weight.clone()
    with pytest.raises(FloatingPointError, match=r"(?s)iteration 0.*loss_score") as caught:
        trainer.train()
    assert "SOLVER.BASE_LR" in str(caught.value)
    assert torch.equal(trainer.model.backbone.weight, before)


def test_evaluation_runs_at_the_end(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    cfg.TEST.EVAL_PERIOD = 1
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    # Two of four images have class 0, which the model always predicts, at the right place.
    assert json.loads(lines[-1])["bbox/AP-cat"] > 0


def test_fp16_on_a_cpu_trains_in_full_precision(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.MAX_ITER = 1
    assert set(train(cfg).values) == {0}


def set_best_metric(cfg: CfgNode, **solver: object) -> None:
    """Evaluate after every step; the AP of the stand-in is constant."""
    cfg.TEST.EVAL_PERIOD = 1
    cfg.SOLVER.BEST_METRIC = "bbox/AP"
    for key, value in solver.items():
        setattr(cfg.SOLVER, key, value)


@pytest.fixture
def falling_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation is the best one."""
    monkeypatch.setattr(BestMetricHook, "_latest_value", lambda self: -float(self.trainer.iter))


def test_an_equal_metric_is_the_best_again(cfg: CfgNode) -> None:
    set_best_metric(cfg, EARLY_STOP_PATIENCE=1)
    assert len(train(cfg).values) == cfg.SOLVER.MAX_ITER


@pytest.mark.usefixtures("falling_metric")
def test_training_stops_when_the_metric_does_not_improve(cfg: CfgNode) -> None:
    set_best_metric(cfg, EARLY_STOP_PATIENCE=2)
    # The third step, which ends training, does not reach the Record hook.
    assert set(train(cfg).values) == {0, 1}


@pytest.mark.usefixtures("falling_metric")
def test_training_with_a_metric_ends_with_the_best_weights(cfg: CfgNode) -> None:
    set_best_metric(cfg, EARLY_STOP_PATIENCE=2)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    after_first_step = {}

    class KeepFirst(HookBase):
        def after_step(self) -> None:
            # BestMetricHook runs first, so the last step does not reach this hook.
            if self.trainer.iter == 0:
                weights = self.trainer.model.state_dict()
                after_first_step.update({name: v.clone() for name, v in weights.items()})

    trainer.register_hooks([KeepFirst()])
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, after_first_step[name]), name


def test_plateaus_reduce_the_rate_also_after_resuming(cfg: CfgNode, tmp_path: Path) -> None:
    set_best_metric(cfg, PLATEAU_PATIENCE=1, STEPS=(), WARMUP_ITERS=2)
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    torch.manual_seed(0)
    whole = train(cfg)
    rates = [whole.values[i][1] for i in range(8)]
    base, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA
    # The evaluations after steps 1 and 2 are not better: one more than the patience.
    assert rates[2:4] == pytest.approx([base, base * decay])
    assert rates[7] == pytest.approx(max(base * decay**3, 1e-6))

    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    torch.manual_seed(0)
    train(cfg, stop_before=6)
    resumed = train(cfg, resume=True)
    assert resumed.values == {i: whole.values[i] for i in (4, 5, 6, 7)}


def test_a_metric_that_the_evaluation_does_not_compute_is_an_error(cfg: CfgNode) -> None:
    set_best_metric(cfg, BEST_METRIC="bbox/mAP")
    with pytest.raises(ValueError, match=r"'bbox/mAP'.*bbox/AP"):
        train(cfg)


def test_rules_without_a_metric_are_an_error_before_training(cfg: CfgNode) -> None:
    cfg.SOLVER.EARLY_STOP_PATIENCE = 2
    with pytest.raises(ValueError, match=r"SOLVER\.BEST_METRIC.*empty"):
        Trainer(cfg)


@pytest.mark.parametrize(
    "schedule", [{"STEPS": (3,)}, {"LR_SCHEDULER_NAME": "WarmupCosineLR", "STEPS": ()}]
)
def test_plateaus_beside_another_schedule_are_an_error_before_training(
    cfg: CfgNode, schedule: dict[str, Any]
) -> None:
    set_best_metric(cfg, PLATEAU_PATIENCE=1, **schedule)
    with pytest.raises(ValueError, match=r"SOLVER\.PLATEAU_PATIENCE is 1.*set SOLVER\.STEPS \(\)"):
        Trainer(cfg)


def test_a_metric_without_evaluations_is_an_error_before_training(cfg: CfgNode) -> None:
    cfg.SOLVER.BEST_METRIC = "bbox/AP"
    with pytest.raises(ValueError, match=r"TEST\.EVAL_PERIOD"):
        Trainer(cfg)


# The end of a training


class FailOnce:
    """Makes the writing of a checkpoint fail, as a kill (Interrupted) or a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
        save = GLIPv2Checkpointer.save

        def fail(checkpointer: GLIPv2Checkpointer, saved: str, **kwargs: Any) -> None:
            if saved != name:
                return save(checkpointer, saved, **kwargs)
            with monkeypatch.context() as patch:

                def interrupt(*_: Any, **__: Any) -> None:
                    raise error

                patch.setattr("glipv2_d2.checkpoint.loading.torch.save", interrupt)
                return save(checkpointer, saved, **kwargs)

        monkeypatch.setattr(GLIPv2Checkpointer, "save", fail)


def kept(checkpoint: dict) -> dict:
    """What two runs must have in common: the weights, their average, and the next iteration."""
    return {**checkpoint["model"], **checkpoint["model_ema"], "i": checkpoint["iteration"]}


@pytest.mark.parametrize(("full_disk", "period"), [(False, 2), (True, 3)])
def test_a_run_that_ended_while_the_final_checkpoint_was_written_is_completed(
    cfg: CfgNode, tmp_path: Path, full_disk: bool, period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.SOLVER.CHECKPOINT_PERIOD = period
    cfg.SEED = 3
    torch.manual_seed(0)
    train(cfg)
    expected = final(cfg)

    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    torch.manual_seed(0)
    error = OSError(errno.ENOSPC, "No space left on device") if full_disk else Interrupted()
    with monkeypatch.context() as patch:
        FailOnce(patch, "model_final", error)
        _, message = ended(lambda: train(cfg))
    last = "model_0000007.pth" if period == 2 else "model_0000005.pth"
    if full_disk:
        assert f"{cfg.OUTPUT_DIR}/model_final.pth': No space left" in message
        assert f"{cfg.OUTPUT_DIR}/{last}': free space and continue with --resume" in message
    assert not (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()
    train(cfg, resume=True)
    resumed, before = kept(final(cfg)), kept(expected)
    assert resumed.keys() == before.keys()
    assert all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(before[k])) for k, v in resumed.items()
    )
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"


def ended(function: Callable[[], object]) -> tuple[object, str]:
    """The result and "", or None and the message of an OSError."""
    try:
        return function(), ""
    except OSError as error:
        return None, str(error)


def test_a_final_checkpoint_of_fewer_iterations_is_replaced(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    cfg.SOLVER.MAX_ITER = 4
    with monkeypatch.context() as patch:
        FailOnce(patch, "model_final", Interrupted())
        train(cfg, resume=True)
    assert final(cfg)["iteration"] == 1
    train(cfg, resume=True)
    assert final(cfg)["iteration"] == 3


def test_a_completed_run_can_be_resumed(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    content = (Path(cfg.OUTPUT_DIR) / "model_final.pth").read_bytes()
    assert train(cfg, resume=True).values == {}
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").read_bytes() == content


def test_fewer_iterations_than_those_of_the_checkpoint_are_an_error(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 4
    train(cfg)
    cfg.SOLVER.MAX_ITER = 3
    with pytest.raises(ValueError, match=r"model_final.pth' was written after 4 iterations.* is 3"):
        train(cfg, resume=True)


def test_weights_alone_are_not_resumed(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    output = Path(cfg.OUTPUT_DIR)
    save_weights(Trainer.build_model(cfg), output / "weights.pth")
    (output / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' has weights, but no state of a training"):
        train(cfg, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"iteration": "soon"},
        {"hooks": 5},
        {"_trainer": {}},
    ],
)
def test_a_damaged_training_state_is_an_error(cfg: CfgNode, damage: dict[str, Any]) -> None:
    cfg.SOLVER.MAX_ITER = 1
    train(cfg)
    checkpoint = final(cfg)
    checkpoint["trainer"] |= damage
    torch.save(checkpoint, Path(cfg.OUTPUT_DIR) / "model_final.pth")
    with pytest.raises(ValueError, match="training state of the checkpoint does not fit"):
        train(cfg, resume=True)


def test_a_full_disk_of_another_file_names_the_folder_and_the_last_checkpoint(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.SOLVER.CHECKPOINT_PERIOD = 2

    class Full(HookBase):
        def after_step(self) -> None:
            if self.trainer.iter == 4:
                raise OSError(errno.ENOSPC, "No space left on device")

    trainer = Trainer(cfg)
    trainer.register_hooks([Full()])
    with pytest.raises(OSError, match=rf"'{cfg.OUTPUT_DIR}'.*No space left.*model_0000003\.pth"):
        trainer.train()


def test_metrics_are_valid_json_also_without_a_number(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    cfg.TEST.EVAL_PERIOD = 1
    train(cfg)
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    metrics = json.loads(lines[-1], parse_constant=pytest.fail)
    # The images have no large objects.
    assert metrics["bbox/APl"] is None
    results = (Path(cfg.OUTPUT_DIR) / "results.json").read_text()
    assert json.loads(results, parse_constant=pytest.fail)["engine_coco"]["bbox"]["APl"] is None
