"""A trainer that reports its progress, and the evaluation of stored weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.engine.finetune.tuning import apply_tuning, resume_or_load
from glipv2_d2.engine.precision import round_weights
from glipv2_d2.engine.train.trainer import Trainer

OnProgress = Callable[[str, int, int], None]
"""What is done now, the iterations that are done, and their total number."""


class ReportingTrainer(Trainer):
    """A :class:`Trainer` that calls ``on_progress`` before and after each iteration."""

    def __init__(self, cfg: CfgNode, on_progress: OnProgress) -> None:
        self.on_progress = on_progress
        super().__init__(cfg)

    @property
    def last_results(self) -> dict[str, Any]:
        """Those of the last evaluation in the main process; empty without."""
        return getattr(self, "_last_eval_results", None) or {}

    def build_hooks(self) -> list[HookBase]:
        # First, so that an evaluation after the iteration is announced.
        return [_ReportHook(self.on_progress), *super().build_hooks()]


class _ReportHook(HookBase):
    trainer: Trainer

    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress
        self.text = "train"

    def before_step(self) -> None:
        self._report(self.text, self.trainer.iter)

    def after_step(self) -> None:
        trainer, done = self.trainer, self.trainer.iter + 1
        latest = trainer.storage.latest()
        parts = ["train"]
        if "total_loss" in latest:
            parts.append(f"loss {latest['total_loss'][0]:.3f}")
        best = trainer.best_metric_hook
        if best is not None and best.best is not None:
            parts.append(f"best {best.metric} {best.best:.1f}")
        self.text = ", ".join(parts)
        period = trainer.cfg.TEST.EVAL_PERIOD
        is_evaluated = period > 0 and done % period == 0
        self._report("evaluate" if is_evaluated else self.text, done)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and self.trainer.cfg.DATASETS.TEST:
            self._report("evaluate", self.trainer.max_iter)

    def _report(self, text: str, done: int) -> None:
        self.on_progress(text, done, self.trainer.max_iter)


def evaluate_weights(cfg: CfgNode, *, resume: bool) -> dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` with ``MODEL.TUNING.DELTA``, or the last checkpoint."""
    model = Trainer.build_model(cfg)
    tuning = apply_tuning(cfg, model)
    resume_or_load(GLIPv2Checkpointer(model, save_dir=cfg.OUTPUT_DIR), cfg, tuning, resume=resume)
    round_weights(model, cfg)
    return Trainer.test(cfg, model)
