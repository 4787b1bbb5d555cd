"""Training goes on after an interruption as if there had been none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from glipv2_d2.engine.trainer import Trainer


class Interrupted(Exception):
    pass


class StopBefore(HookBase):
    """Ends the run as a kill would, between two checkpoints."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise Interrupted


class Record(HookBase):
    """Losses and learning rates of every iteration."""

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
def test_a_resumed_run_equals_the_uninterrupted_one(
    cfg: CfgNode, tmp_path: Path, seed: int
) -> None:
    cfg.SEED = 3
    torch.manual_seed(0)
    whole = train(cfg)
    expected = final(cfg)

    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    torch.manual_seed(0)
    train(cfg, stop_before=5)
    # The seed of an unseeded run comes from its checkpoint.
    cfg.SEED = seed
    torch.manual_seed(99)
    resumed = train(cfg, resume=True)

    assert set(resumed.values) == {3, 4, 5, 6, 7}
    assert resumed.values == {i: whole.values[i] for i in resumed.values}
    for part in ("model", "model_ema"):
        for name, value in final(cfg)[part].items():
            assert torch.equal(value, expected[part][name]), name


def test_checkpoints_have_the_average_beside_the_weights(cfg: CfgNode) -> None:
    train(cfg)
    checkpoint = final(cfg)
    assert set(checkpoint["model"]) - set(checkpoint["model_ema"]) == {"frozen"}
    weight = "backbone.weight"
    assert not torch.equal(checkpoint["model"][weight], checkpoint["model_ema"][weight])


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(cfg: CfgNode) -> None:
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
    # Two of four images show class 0, which the model always guesses, at the right place.
    assert json.loads(lines[-1])["bbox/AP-cat"] > 0


def test_half_precision_is_left_to_cuda(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.MAX_ITER = 1
    assert set(train(cfg).values) == {0}
