"""Schedules of the learning rate and the weight decay, beside those of Detectron2's solver."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from fvcore.common.param_scheduler import LinearParamScheduler
from torch.optim.lr_scheduler import LRScheduler

from glipv2_d2.engine.train.best_checkpoint import build_warmup_scheduler

LINEAR_SCHEDULE = "WarmupLinearLR"


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the part of the schedule that steps per iteration.

    ``SOLVER.LR_SCHEDULER_NAME`` is one of Detectron2's or ``WarmupLinearLR``: from ``BASE_LR`` to
    ``BASE_LR_END`` on a line, as in FIBER.

    Raises:
        ValueError: the name is unknown.
    """
    solver = cfg.SOLVER
    if solver.PLATEAU_PATIENCE >= 0:
        return build_warmup_scheduler(cfg, optimizer)
    if solver.LR_SCHEDULER_NAME != LINEAR_SCHEDULE:
        return build_detectron2_scheduler(cfg, optimizer)
    multiplier = WarmupParamScheduler(
        LinearParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)


class WeightDecaySteps(HookBase):
    """Multiplies the weight decay of all parameters by ``gamma`` at some iterations.

    ``WEIGHT_DECAY_SCHEDULE`` of GLIP-L (glip_reference.md 17).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: tuple[int, ...], gamma: float
    ) -> None:
        """
        Args:
            optimizer: with the weight decay of the first iteration.
            steps: iterations from which on the decay is lower.
            gamma: factor of each.
        """
        self.optimizer = optimizer
        self.steps = steps
        self.gamma = gamma
        # A checkpoint that is resumed has the decay of its iteration.
        self.initial = [group["weight_decay"] for group in optimizer.param_groups]

    def before_step(self) -> None:
        factor = self.gamma ** sum(self.trainer.iter >= step for step in self.steps)
        for group, initial in zip(self.optimizer.param_groups, self.initial, strict=True):
            group["weight_decay"] = initial * factor


def weight_decay_steps(cfg: CfgNode) -> tuple[int, ...]:
    """The iterations at ``SOLVER.WEIGHT_DECAY_STEP_RATIO`` of the learning rate's steps; (): none.

    Raises:
        ValueError: the learning rate has no steps.
    """
    ratio, steps = cfg.SOLVER.WEIGHT_DECAY_STEP_RATIO, cfg.SOLVER.STEPS
    if ratio == 0:
        return ()
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR" or not steps:
        raise ValueError(
            f"SOLVER.WEIGHT_DECAY_STEP_RATIO is {ratio}, but the learning rate has no steps: use "
            "SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR with STEPS, or a ratio of 0"
        )
    return tuple(int(step * ratio) for step in steps)
