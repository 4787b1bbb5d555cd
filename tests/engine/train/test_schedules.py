from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode

from glipv2_d2 import get_config
from glipv2_d2.engine.train.schedules import (
    WeightDecaySteps,
    build_lr_scheduler,
    weight_decay_steps,
)


def make_cfg(**solver: object) -> CfgNode:
    cfg = get_config("glip-t")
    for key, value in solver.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def make_optimizer(*weight_decays: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1)], "weight_decay": x} for x in weight_decays]
    return torch.optim.SGD(groups, lr=1.0)


def rates(cfg: CfgNode) -> list[float]:
    optimizer = make_optimizer(0.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_linear_schedule_is_that_of_fiber() -> None:
    """Up to the rate in the warm-up, from there to 0 in the other iterations."""
    cfg = make_cfg(
        LR_SCHEDULER_NAME="WarmupLinearLR",
        MAX_ITER=10,
        WARMUP_ITERS=2,
        WARMUP_FACTOR=0.0,
        RESCALE_INTERVAL=True,
        BASE_LR=1.0,
        BASE_LR_END=0.0,
    )
    expected = [0.0, 0.5, *(1 - i / 8 for i in range(8))]
    assert rates(cfg) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_detectron2s_schedules_are_built_by_their_names() -> None:
    cfg = make_cfg(MAX_ITER=4, WARMUP_ITERS=0, STEPS=(2,), GAMMA=0.1)
    assert rates(cfg) == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown LR scheduler: Linear"):
        build_lr_scheduler(make_cfg(LR_SCHEDULER_NAME="Linear"), make_optimizer(0.0))


def test_weight_decay_falls_at_the_ratio_of_each_step_also_when_resumed() -> None:
    cfg = get_config("glip-l")
    steps = weight_decay_steps(cfg)
    assert steps == (int(670000 * 0.667), int(890000 * 0.667))
    optimizer = make_optimizer(0.01, 0.0)
    hook = WeightDecaySteps(optimizer, steps, gamma=0.1)
    for iteration, expected in (
        (steps[0] - 1, 0.01),
        (steps[0], 0.001),
        (steps[1] - 1, 0.001),
        (steps[1], 0.0001),
        # Of a resumed training.
        (0, 0.01),
    ):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.before_step()
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == pytest.approx([expected, 0.0])


def test_weight_decay_steps_need_steps_of_the_learning_rate() -> None:
    assert weight_decay_steps(make_cfg(STEPS=())) == ()
    with pytest.raises(ValueError, match=r"WEIGHT_DECAY_STEP_RATIO is 0\.5.*has no steps"):
        weight_decay_steps(make_cfg(WEIGHT_DECAY_STEP_RATIO=0.5, STEPS=()))
