"""Detectron2's DefaultTrainer with our data, optimizer and evaluators, and exact resuming."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.engine.ema import EMAHook, ExponentialMovingAverage
from glipv2_d2.engine.param_groups import build_optimizer
from glipv2_d2.evaluation.build import build_evaluator

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains what a config describes.

    A run that was killed at any moment and is resumed goes on from its last checkpoint as if
    nothing had happened: model, optimizer, schedule, average and iteration come from the file; the
    data and the model's random numbers are functions of the seed, which the file has too, and of
    the iteration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
            logger.warning("SOLVER.AMP.ENABLED needs CUDA: training in full precision")
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.AMP.ENABLED = False
            cfg.freeze()
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        # Before the first hook takes hold of Detectron2's own.
        self.checkpointer = GLIPv2Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[HookBase] = [SeedIterations(self.data_loader)]
        if self.cfg.SOLVER.EMA_DECAY > 0:
            # The checkpointer's model is the bare one, without the wrapper of several processes.
            average = ExponentialMovingAverage(self.checkpointer.model, self.cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable("model_ema", average)
            hooks.append(EMAHook(average))
        return hooks + super().build_hooks()

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's, and the data continue where they were."""
        super().resume_or_load(resume)
        self.data_loader.start_iteration = self.start_iter

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the weights are still those of
                the iteration before.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"iteration {self.iter}: {error}\nThe weights were not updated. Resume from the "
                f"last checkpoint in {self.cfg.OUTPUT_DIR} with a lower SOLVER.BASE_LR (now "
                f"{self.cfg.SOLVER.BASE_LR}) or a longer SOLVER.WARMUP_ITERS (now "
                f"{self.cfg.SOLVER.WARMUP_ITERS})"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.data_loader.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.data_loader.seed = state_dict["seed"]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)


class SeedIterations(HookBase):
    """Seeds torch before each step, so that dropout does not depend on what ran before it."""

    def __init__(self, data_loader: TrainLoader) -> None:
        self.data_loader = data_loader

    def before_step(self) -> None:
        place = [self.data_loader.seed, comm.get_rank(), self.trainer.iter]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
