"""Detectron2's DefaultTrainer with our data, optimizer and evaluators, and exact resuming."""

from __future__ import annotations

import functools
import json
import logging
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from glipv2_d2.checkpoint import GLIPv2Checkpointer, save_weights
from glipv2_d2.checkpoint.writing import atomic_open
from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.engine.ema import EMAHook, ExponentialMovingAverage
from glipv2_d2.engine.follow_metric import (
    PLATEAU_SCHEDULE,
    EarlyStop,
    FollowMetric,
    build_plateau,
    build_warmup,
    check_follows,
)
from glipv2_d2.engine.metrics import ResourceMetrics
from glipv2_d2.engine.param_groups import build_optimizer
from glipv2_d2.engine.passes import build_multi_pass_trainer, images_per_pass
from glipv2_d2.engine.policies import FrozenPartsRest
from glipv2_d2.engine.precision import inference_precision
from glipv2_d2.engine.processes import average_gradients
from glipv2_d2.engine.tuning import DELTA_FILE, build_tuned_model, resume_or_load, save_delta
from glipv2_d2.evaluation.build import build_evaluator
from glipv2_d2.evaluation.overlapping import OverlappingEvaluator

logger = logging.getLogger(__name__)

BEST_FILE = "model_best.pth"
"""The weights that were best in SOLVER.BEST_METRIC, in OUTPUT_DIR."""


RESULTS_FILE = "results.json"
"""What the last evaluation gave, in OUTPUT_DIR: {data set: {task: {metric: number}}}."""


class Trainer(DefaultTrainer):
    """Trains what a config describes.

    A run that was killed at any moment and is resumed goes on from its last checkpoint as if
    nothing had happened: model, optimizer, schedule, average and iteration come from the file; the
    data and the model's random numbers are functions of the seed, which the file has too, and of
    the iteration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError: a value in the config is wrong.
        """
        check_follows(cfg)
        # Not DefaultTrainer's own: its steps are of one pass, its AMP is fp16 on CUDA, and several
        # processes need a GPU each.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = build_multi_pass_trainer(
            cfg, average_gradients(model), self.build_train_loader(cfg), optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GLIPv2Checkpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        hooks: list[HookBase] = [SeedIterations(self.data_loader)]
        # The checkpointer's model is the bare one, without the wrapper of several processes.
        model = self.checkpointer.model
        if hasattr(model, "tuning"):
            hooks.append(FrozenPartsRest(model))
        if self.cfg.SOLVER.EMA_DECAY > 0:
            average = ExponentialMovingAverage(model, self.cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable("model_ema", average)
            hooks.append(EMAHook(average))
        timer, *others = super().build_hooks()
        device = next(model.parameters()).device
        hooks += [timer, ResourceMetrics(self.cfg.SOLVER.IMS_PER_BATCH, device), *others]
        self.follow_metric = self._build_follow_metric()
        if self.follow_metric is not None:
            hooks = behind_evaluation(hooks, self.follow_metric)
        return hooks

    def _build_follow_metric(self) -> FollowMetric | None:
        solver = self.cfg.SOLVER
        if not solver.BEST_METRIC:
            return None
        return FollowMetric(
            metric=solver.BEST_METRIC,
            period=self.cfg.TEST.EVAL_PERIOD,
            save_best=functools.partial(
                save_best, self.checkpointer.model, Path(self.cfg.OUTPUT_DIR) / BEST_FILE
            ),
            plateau=build_plateau(self.cfg, self.optimizer),
            early_stop_patience=solver.EARLY_STOP_PATIENCE,
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's, and the data continue where they were."""
        resume_or_load(self.checkpointer, self.cfg, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # The checkpoint says which iteration was the last.
            self.start_iter = self.iter + 1
        self.data_loader.start_iteration = self.start_iter * self.cfg.SOLVER.ACCUMULATE

    def train(self) -> Any:
        """Detectron2's; ends with the best weights and writes the delta, where the config asks.

        A training that follows ``SOLVER.BEST_METRIC`` may end before its last iteration.
        """
        results = None
        try:
            results = super().train()
        except EarlyStop as stop:
            logger.info("%s", stop)
        if self.follow_metric is not None and self.follow_metric.best is not None:
            comm.synchronize()
            self.checkpointer.load(str(Path(self.cfg.OUTPUT_DIR) / BEST_FILE), checkpointables=[])
        if hasattr(self.checkpointer.model, "tuning") and comm.is_main_process():
            save_delta(self.checkpointer.model, Path(self.cfg.OUTPUT_DIR) / DELTA_FILE)
        return results

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss or gradient is not finite; names the images. The weights are
                still those of the iteration before.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"iteration {self.iter}: {error}\nThe weights were not updated. Resume from the "
                f"last checkpoint in {self.cfg.OUTPUT_DIR} with a lower SOLVER.BASE_LR (now "
                f"{self.cfg.SOLVER.BASE_LR}) or a longer SOLVER.WARMUP_ITERS (now "
                f"{self.cfg.SOLVER.WARMUP_ITERS}), or leave such steps out (SOLVER.NON_FINITE skip)"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.data_loader.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.data_loader.seed = state_dict["seed"]

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Detectron2's; also writes the results to ``OUTPUT_DIR/results.json``."""
        with inference_precision(cfg):
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            names = list(cfg.DATASETS.TEST)
            per_dataset = {names[0]: results} if len(names) == 1 else results
            with atomic_open(Path(cfg.OUTPUT_DIR) / RESULTS_FILE) as file:
                file.write(json.dumps(per_dataset, indent=1).encode())
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_tuned_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        if cfg.SOLVER.LR_SCHEDULER_NAME == PLATEAU_SCHEDULE:
            return build_warmup(cfg, optimizer)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Of batches for one pass; a step takes ``SOLVER.ACCUMULATE`` of them."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH = images_per_pass(cfg)
        cfg.freeze()
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return OverlappingEvaluator(build_evaluator(cfg, dataset_name))


def behind_evaluation(hooks: Sequence[HookBase | None], follower: HookBase) -> list[HookBase]:
    """Put a hook behind the evaluation's, and the checkpoints behind it.

    Detectron2 writes a checkpoint before it evaluates. A run that was resumed from there would not
    know the outcome of that evaluation.
    """
    placed: list[HookBase] = []
    checkpoints = [hook for hook in hooks if isinstance(hook, PeriodicCheckpointer)]
    for hook in hooks:
        if hook is None or hook in checkpoints:
            continue
        placed.append(hook)
        if isinstance(hook, EvalHook):
            placed += [follower, *checkpoints]
    return placed


def save_best(model: nn.Module, path: Path) -> None:
    """Write the weights alone; the main process does."""
    if comm.is_main_process():
        save_weights(model, path)


class SeedIterations(HookBase):
    """Seeds every source of randomness before each step.

    Dropout then does not depend on what ran before the step, and no random state needs saving.
    """

    def __init__(self, data_loader: TrainLoader) -> None:
        self.data_loader = data_loader

    def before_step(self) -> None:
        place = [self.data_loader.seed, comm.get_rank(), self.trainer.iter]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
