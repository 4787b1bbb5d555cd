"""A metric of the evaluations decides: the learning rate, when to stop, which weights are kept."""

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

PLATEAU_SCHEDULE = "WarmupPlateauLR"
"""The value of ``SOLVER.LR_SCHEDULER_NAME`` under which plateaus lower the learning rate."""


class EarlyStop(BaseException):
    """Ends a training whose metric improves no more.

    No Exception: Detectron2 logs those as failures.
    """


class FollowMetric(HookBase):
    """Watches one metric; higher is better. Stands behind the evaluation, before the checkpoints.

    The plateau and early-stop rules are those of the released code's few-shot training (GLIP spec
    17). An evaluation without a value for the metric (nan) is no new best.
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
            metric: its name in Detectron2's storage, e.g. "bbox/AP".
            period: of the evaluations, in iterations.
            save_best: called after each evaluation that is a new best.
            plateau: lowers the learning rate.
            early_stop_patience: evaluations in a row that may bring no new best; 0: any number.
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
        # As Detectron2's EvalHook, which does the last evaluation after the training.
        if next_iter % self.period != 0 or next_iter == self.trainer.max_iter:
            return
        value = self._follow()
        if self.plateau is not None:
            # Nothing is better than nan in torch's comparison.
            self.plateau.step(value if value == value else float("-inf"))
        if 0 < self.early_stop_patience <= self.num_since_best:
            raise EarlyStop(
                f"{self.metric} has not improved in {self.num_since_best} evaluations: stopped at "
                f"iteration {self.trainer.iter}"
            )

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._follow()

    def _follow(self) -> float:
        value = self._value()
        if value > (float("-inf") if self.best is None else self.best):
            self.best, self.num_since_best = value, 0
            logger.info("%s %.3f is the best so far", self.metric, value)
            self.save_best()
        else:
            self.num_since_best += 1
        return value

    def _value(self) -> float:
        """The metric of the evaluation just done, in every process."""
        latest = self.trainer.storage.latest()
        # Only the main process knows results.
        known, found = comm.all_gather((sorted(latest), latest.get(self.metric)))[0]
        if found is None:
            metrics = [name for name in known if "/" in name]
            raise ValueError(
                f"SOLVER.BEST_METRIC is {self.metric!r}, which the evaluation does not give; it "
                f"gives {metrics}"
            )
        return float(found[0])

    def state_dict(self) -> dict[str, Any]:
        plateau = None if self.plateau is None else self.plateau.state_dict()
        return {"best": self.best, "num_since_best": self.num_since_best, "plateau": plateau}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.num_since_best = state_dict["best"], state_dict["num_since_best"]
        if self.plateau is not None and state_dict["plateau"] is not None:
            self.plateau.load_state_dict(state_dict["plateau"])


def build_warmup(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LinearLR:
    """The part of the plateau schedule that goes by iterations: a linear warm-up."""
    iterations = cfg.SOLVER.WARMUP_ITERS
    start = cfg.SOLVER.WARMUP_FACTOR if iterations > 0 else 1.0
    return LinearLR(optimizer, start_factor=start, total_iters=max(1, iterations))


def build_plateau(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau | None:
    """The part that goes by evaluations; None with another ``SOLVER.LR_SCHEDULER_NAME``."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != PLATEAU_SCHEDULE:
        return None
    return ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=cfg.SOLVER.GAMMA,
        patience=cfg.SOLVER.PLATEAU_PATIENCE,
        threshold=0.0,
    )


def check_follows(cfg: CfgNode) -> None:
    """Raise what would otherwise be told after the first evaluation, or never.

    Raises:
        ValueError: a rule needs a metric or evaluations, which the config does not have.
    """
    solver = cfg.SOLVER
    needs_metric = solver.LR_SCHEDULER_NAME == PLATEAU_SCHEDULE or solver.EARLY_STOP_PATIENCE > 0
    if needs_metric and not solver.BEST_METRIC:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME {PLATEAU_SCHEDULE} and SOLVER.EARLY_STOP_PATIENCE follow "
            'SOLVER.BEST_METRIC, which is empty: name a metric, e.g. "bbox/AP"'
        )
    if solver.BEST_METRIC and (cfg.TEST.EVAL_PERIOD <= 0 or not cfg.DATASETS.TEST):
        raise ValueError(
            f"SOLVER.BEST_METRIC {solver.BEST_METRIC!r} needs evaluations: set TEST.EVAL_PERIOD "
            f"(now {cfg.TEST.EVAL_PERIOD}) and DATASETS.TEST (now {cfg.DATASETS.TEST})"
        )
