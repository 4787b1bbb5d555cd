"""Model selection by a metric: best checkpoint, early stopping and learning-rate plateaus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

logger = logging.getLogger(__name__)

CONSTANT_SCHEDULE = "WarmupMultiStepLR"
"""The value of ``SOLVER.LR_SCHEDULER_NAME`` that, without STEPS, leaves the rate to plateaus."""

# As in GLIP: a smaller relative gain is none, and the rate falls no further.
PLATEAU_THRESHOLD = 1e-4
PLATEAU_MIN_LR = 1e-6


class EarlyStop(BaseException):
    """Ends a training whose metric no longer improves.

    Not an Exception, because Detectron2 logs those as failures.
    """


class BestMetricHook(HookBase):
    """Saves the best weights by one metric, and optionally reduces the rate or stops early.

    Higher values are better; nan is never the best. Register it after the evaluation hook and
    before the checkpointer. The rules are those of the released code's few-shot training
    (glip_reference.md 17): a value that equals the best is the best again.
    """

    def __init__(
        self,
        *,
        metric: str,
        period: int,
        save_best: Callable[[], None],
        plateau: ReduceLROnPlateau | None = None,
        early_stop_patience: int = 0,
    ) -> None:
        """
        Args:
            metric: its name in Detectron2's event storage, e.g. "bbox/AP".
            period: iterations between two evaluations.
            save_best: called after each evaluation whose value is not below the best.
            plateau: reduces the learning rate; None: the rate does not depend on the metric.
            early_stop_patience: stop after this many evaluations in a row below the best
                value; 0: never.
        """
        self.metric = metric
        self.period = period
        self.save_best = save_best
        self.plateau = plateau
        self.early_stop_patience = early_stop_patience
        self.best: float | None = None
        self.num_since_best = 0

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        # Detectron2's EvalHook runs the last evaluation after training.
        if next_iter % self.period != 0 or next_iter == self.trainer.max_iter:
            return
        value = self._update_best()
        if self.plateau is not None:
            # torch compares nothing as better than nan.
            self.plateau.step(value if value == value else float("-inf"))
        if 0 < self.early_stop_patience <= self.num_since_best:
            raise EarlyStop(
                f"{self.metric} is below its best in {self.num_since_best} evaluations: stopped at "
                f"iteration {self.trainer.iter}"
            )

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._update_best()

    def _update_best(self) -> float:
        value = self._latest_value()
        # False for nan.
        if value >= (float("-inf") if self.best is None else self.best):
            self.best, self.num_since_best = value, 0
            logger.info("%s %.3f is the best so far", self.metric, value)
            self.save_best()
        else:
            self.num_since_best += 1
        return value

    def _latest_value(self) -> float:
        """The metric of the latest evaluation, in every process."""
        latest = self.trainer.storage.latest()
        # Only the main process has results.
        known, found = comm.all_gather((sorted(latest), latest.get(self.metric)))[0]
        if found is None:
            metrics = [name for name in known if "/" in name]
            raise ValueError(
                f"the evaluation does not compute the metric {self.metric!r}; it computes {metrics}"
            )
        return float(found[0])

    def state_dict(self) -> dict[str, Any]:
        plateau = None if self.plateau is None else self.plateau.state_dict()
        return {"best": self.best, "num_since_best": self.num_since_best, "plateau": plateau}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.num_since_best = state_dict["best"], state_dict["num_since_best"]
        if self.plateau is not None and state_dict["plateau"] is not None:
            self.plateau.load_state_dict(state_dict["plateau"])


def build_warmup_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LinearLR:
    """The part of the plateau schedule that steps per iteration: a linear warm-up."""
    iterations = cfg.SOLVER.WARMUP_ITERS
    start = cfg.SOLVER.WARMUP_FACTOR if iterations > 0 else 1.0
    return LinearLR(optimizer, start_factor=start, total_iters=max(1, iterations))


def build_plateau_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> ReduceLROnPlateau | None:
    """The part that steps per evaluation; None without ``SOLVER.PLATEAU_PATIENCE``."""
    if cfg.SOLVER.PLATEAU_PATIENCE < 0:
        return None
    return ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=cfg.SOLVER.GAMMA,
        patience=cfg.SOLVER.PLATEAU_PATIENCE,
        threshold=PLATEAU_THRESHOLD,
        min_lr=PLATEAU_MIN_LR,
    )


def check_best_metric(cfg: CfgNode) -> None:
    """Check before training that the rules which depend on a metric have one.

    Raises:
        ValueError: a rule needs ``SOLVER.BEST_METRIC`` or evaluations, and the config has none, or
            it reduces the rate on plateaus and by another schedule.
    """
    solver = cfg.SOLVER
    has_plateaus = solver.PLATEAU_PATIENCE >= 0
    if has_plateaus and (solver.LR_SCHEDULER_NAME != CONSTANT_SCHEDULE or solver.STEPS):
        raise ValueError(
            f"SOLVER.PLATEAU_PATIENCE is {solver.PLATEAU_PATIENCE}, but the schedule is "
            f"{solver.LR_SCHEDULER_NAME} with STEPS {solver.STEPS}: set SOLVER.STEPS () and "
            f"SOLVER.LR_SCHEDULER_NAME {CONSTANT_SCHEDULE}, or SOLVER.PLATEAU_PATIENCE -1"
        )
    needs_metric = has_plateaus or solver.EARLY_STOP_PATIENCE > 0
    if needs_metric and not solver.BEST_METRIC:
        raise ValueError(
            "SOLVER.PLATEAU_PATIENCE and SOLVER.EARLY_STOP_PATIENCE need SOLVER.BEST_METRIC, "
            'which is empty: set it, e.g. to "bbox/AP"'
        )
    if solver.BEST_METRIC and (cfg.TEST.EVAL_PERIOD <= 0 or not cfg.DATASETS.TEST):
        raise ValueError(
            f"SOLVER.BEST_METRIC {solver.BEST_METRIC!r} needs evaluations: set TEST.EVAL_PERIOD "
            f"(now {cfg.TEST.EVAL_PERIOD}) and DATASETS.TEST (now {cfg.DATASETS.TEST})"
        )
