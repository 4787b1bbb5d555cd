"""The trainer of fine-tuning: a time limit, the remaining time, and a delta at each new best."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from glipv2_d2.engine.finetune.time_plan import (
    MeasuredTimes,
    Plan,
    TimeLimit,
    fit,
    remaining,
)
from glipv2_d2.engine.finetune.tuning import save_delta
from glipv2_d2.engine.train.best_checkpoint import BestMetricHook, EarlyStop
from glipv2_d2.engine.train.trainer import Trainer
from glipv2_d2.model_folder import DELTA_FILE

logger = logging.getLogger(__name__)

WRITE_PERIOD = 5
"""Iterations between two lines of metrics: small data have short trainings."""

MAX_LIMITED_ITERATIONS = 10**7
"""``SOLVER.MAX_ITER`` of a training whose length a time limit sets."""

INTERRUPTED_FILE = "model_interrupted"
# The stems of files with the state of a training.
_STATES = re.compile(rf"model_\d{{7}}|model_final|{INTERRUPTED_FILE}")
# Of the time before the limit, for measuring iterations.
_MEASURED_SHARE = 0.05
_MIN_MEASURED = 3

OnProgress = Callable[["Progress"], None]


class Terminated(BaseException):
    """SIGTERM. The state of the training was written."""


@dataclass(frozen=True)
class Progress:
    """The state of a training, for its user.

    Attributes:
        iteration, num_iterations: done, and in total; None: not yet planned, or until evaluations
            no longer improve.
        seconds_left: until the end of all; None: unknown yet.
        is_minimum: whether it is the least time, as evaluations that improve make it longer.
        loss, best: of the last iteration, and the best value of the metric; None: not yet.
    """

    iteration: int
    num_iterations: int | None
    seconds_left: float | None
    is_minimum: bool
    loss: float | None
    best: float | None


class FinetuneTrainer(Trainer):
    """A :class:`Trainer` that ends in time, reports how long it takes, and can be terminated."""

    def __init__(
        self,
        cfg: CfgNode,
        *,
        limit: TimeLimit | None = None,
        evaluation_seconds: float | None = None,
        after_training: float = 0.0,
        on_best: Callable[[], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            limit: sets the number of iterations after a few were measured; ``SOLVER.MAX_ITER`` is
                then :data:`MAX_LIMITED_ITERATIONS`, and the schedule one of Detectron2's.
            evaluation_seconds: of one evaluation, as measured before.
            after_training: seconds of what follows the training.
            on_best: called in the main process after each evaluation with a new best value, when
                the delta was written.
            on_progress: called in the main process after each iteration.
        """
        self.limit = limit
        self.after_training = after_training
        self.on_best = on_best
        self.on_progress = on_progress
        self.times = MeasuredTimes(evaluation_seconds)
        self.plan: Plan | None = None
        self.in_step = False
        self.was_terminated = False
        # Not within steps and writers: an exception there would leave them half done.
        self.ends_at_once = True
        super().__init__(cfg)
        if limit is None:
            self.plan = Plan(self.max_iter, cfg.TEST.EVAL_PERIOD)

    def build_hooks(self) -> list[HookBase]:
        hooks: list[HookBase] = []
        for hook in super().build_hooks():
            if isinstance(hook, EvalHook):
                self.eval_hook = TimedEvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
                # Before them everything of the iteration is done but evaluations and checkpoints.
                hooks.append(StepHook())
                if self.limit is not None:
                    hooks.append(TimeHook())
                hooks.append(self.eval_hook)
            else:
                if isinstance(hook, PeriodicWriter):
                    hook._period = WRITE_PERIOD
                hooks.append(hook)
        # After the checkpointers.
        return [*hooks, KeepLastCheckpoint()]

    def build_writers(self) -> list[EventWriter]:
        """Without Detectron2's line on the terminal, whose remaining time has no evaluations."""
        # Else the first write imports it, and a Ctrl-C during it leaves half a module.
        importlib.import_module("torch.utils.tensorboard")
        return [w for w in super().build_writers() if not isinstance(w, CommonMetricPrinter)]

    def _build_best_metric_hook(self) -> BestMetricHook | None:
        hook = super()._build_best_metric_hook()
        if hook is not None:
            save_weights = hook.save_best

            def save_best() -> None:
                save_weights()
                self.write_delta()
                if self.on_best is not None and comm.is_main_process():
                    self.on_best()

            hook.save_best = save_best
        return hook

    def write_delta(self) -> None:
        """Write the changes to the base, in the main process."""
        if self.tuning is not None and comm.is_main_process():
            path = Path(self.cfg.OUTPUT_DIR) / DELTA_FILE
            save_delta(self.checkpointer.model, self.tuning, path)

    def set_plan(self, plan: Plan) -> None:
        """Set the length of the training, and with it the schedule of the learning rate."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SOLVER.MAX_ITER = plan.num_iterations
        cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, plan.num_iterations // 2)
        state = self.scheduler.state_dict()
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        # Only how far it is: the rest is of the other length.
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **_position(state)})
        self.plan = plan
        self.eval_hook.set_period(plan.evaluation_period)
        if self.best_metric_hook is not None:
            self.best_metric_hook.period = plan.evaluation_period
        for hook in self._hooks:
            if isinstance(hook, PeriodicCheckpointer):
                hook.period = plan.evaluation_period

    def progress(self) -> Progress:
        """After the current iteration."""
        done = self.iter + 1
        is_open = self.cfg.SOLVER.EARLY_STOP_PATIENCE > 0
        total = None if self.plan is None or is_open else self.plan.num_iterations
        latest = self.storage.latest().get("total_loss")
        best = None if self.best_metric_hook is None else self.best_metric_hook.best
        loss = None if latest is None else latest[0]
        return Progress(done, total, self._seconds_left(done), is_open, loss, best)

    def _seconds_left(self, done: int) -> float | None:
        if self.plan is None:
            assert self.limit is not None
            return self.limit.deadline - time.monotonic()
        total, period = self.plan.num_iterations, self.plan.evaluation_period
        if self.cfg.SOLVER.EARLY_STOP_PATIENCE > 0 and self.best_metric_hook is not None:
            # The first evaluation has nothing to be below.
            hook = self.best_metric_hook
            worse = hook.early_stop_patience - hook.num_since_best + (hook.best is None)
            total = min(total, (done // period + worse) * period)
        return remaining(
            iterations_left=total - done,
            evaluations_left=math.ceil(total / period) - done // period,
            iteration=self.times.iteration,
            evaluation=self.times.evaluation,
            after_training=self.after_training,
        )

    def train(self) -> Any:
        """Train; SIGTERM and Ctrl-C write a checkpoint to resume, and the delta.

        Raises:
            Terminated: after SIGTERM.
            KeyboardInterrupt: after Ctrl-C.
        """
        with self._signals():
            try:
                results = super().train()
                if self.was_terminated:
                    raise Terminated
                return results
            except (Terminated, KeyboardInterrupt):
                self._write_interrupted()
                raise

    def _write_interrupted(self) -> None:
        done = self.iter + 1
        # Within a step, weights and iteration may not belong together.
        if not self.in_step and done > self.start_iter:
            self.checkpointer.save(INTERRUPTED_FILE, iteration=self.iter)
        if self.best_metric_hook is None or self.best_metric_hook.best is None:
            # Else the delta of the best evaluation is there.
            with contextlib.suppress(ValueError):
                self.write_delta()

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """SIGTERM ends what is done in this context, also one that arrived before it.

        Raises:
            Terminated: after SIGTERM, in a single process.
        """
        self.ends_at_once = True
        if self.was_terminated and comm.get_world_size() == 1:
            raise Terminated
        yield
        self.ends_at_once = False

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM ends the training at once before it and during evaluations, else after a step."""

        def terminate(*_: Any) -> None:
            self.was_terminated = True
            if self.ends_at_once and comm.get_world_size() == 1:
                raise Terminated

        try:
            before = signal.signal(signal.SIGTERM, terminate)
        except ValueError:  # Not in the main thread.
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _position(state: dict[str, Any]) -> dict[str, Any]:
    return {key: state[key] for key in ("last_epoch", "_step_count") if key in state}


class TimedEvalHook(EvalHook):
    """Detectron2's, which measures its evaluations and whose period can change."""

    def set_period(self, period: int) -> None:
        self._period = period

    def _do_eval(self) -> None:
        start = time.monotonic()
        with self.trainer.ending_at_once():
            super()._do_eval()
        self.trainer.times.evaluation = time.monotonic() - start


class StepHook(HookBase):
    """Measures iterations, reports progress, and ends a training that was terminated.

    After its ``after_step`` an evaluation may follow, and be interrupted.
    """

    trainer: FinetuneTrainer

    def before_step(self) -> None:
        self.trainer.in_step, self.trainer.ends_at_once = True, False
        self._start = time.monotonic()

    def after_step(self) -> None:
        trainer = self.trainer
        trainer.in_step = False
        trainer.times.add_iteration(time.monotonic() - self._start)
        stop = trainer.was_terminated
        if comm.get_world_size() > 1:
            stop = any(comm.all_gather(stop))
        if stop:
            raise Terminated
        if trainer.on_progress is not None and comm.is_main_process():
            trainer.on_progress(trainer.progress())


class KeepLastCheckpoint(HookBase):
    """Removes the checkpoints from which no ``--resume`` continues, also those of earlier runs.

    The best weights and the delta are files of their own.
    """

    trainer: FinetuneTrainer

    def after_step(self) -> None:
        self._remove()

    def after_train(self) -> None:
        self._remove()

    def _remove(self) -> None:
        checkpointer = self.trainer.checkpointer
        last = Path(checkpointer.get_checkpoint_file()).name
        if not comm.is_main_process() or last == self._kept:
            return
        for path in Path(checkpointer.save_dir).glob("model_*.pth"):
            if path.name != last and _STATES.fullmatch(path.stem):
                path.unlink(missing_ok=True)
        self._kept = last

    _kept = ""


class TimeHook(HookBase):
    """Sets the length of the training when enough iterations were measured, and ends it in time."""

    trainer: FinetuneTrainer

    def before_train(self) -> None:
        self._start = time.monotonic()

    def after_step(self) -> None:
        trainer = self.trainer
        limit, times, now = trainer.limit, trainer.times, time.monotonic()
        assert limit is not None
        left, evaluation = limit.left(now), times.evaluation or 0.0
        done = trainer.iter + 1
        if trainer.plan is None and self._is_measured(left, now):
            assert times.iteration is not None
            plan = fit(done, left, times.iteration, evaluation)
            # The clocks of the processes differ.
            plan = comm.all_gather(plan)[0]
            trainer.set_plan(plan)
            logger.info("%d iterations fit into the time", plan.num_iterations)
        is_over = left < evaluation + (times.iteration or 0.0)
        is_done = trainer.plan is not None and done >= trainer.plan.num_iterations
        if comm.all_gather(is_over or is_done)[0]:
            self._end(done)

    def _is_measured(self, left: float, now: float) -> bool:
        count = self.trainer.times.num_measured
        spent = now - self._start
        return count >= _MIN_MEASURED and spent >= _MEASURED_SHARE * (spent + left)

    def _end(self, done: int) -> None:
        """End as after the last iteration: with an evaluation."""
        trainer = self.trainer
        trainer.iter = trainer.max_iter = done
        raise EarlyStop(f"the time is over: stopped after {done} iterations")
