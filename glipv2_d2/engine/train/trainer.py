"""Detectron2's DefaultTrainer with GLIPv2's data, optimizer and evaluators, and exact resuming."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import random
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from glipv2_d2.checkpoint import GLIPv2Checkpointer, save_weights
from glipv2_d2.config import complete_config
from glipv2_d2.data.build import (
    build_test_loader,
    build_train_loader,
    training_seed,
)
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.loading import check_registered
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.engine.finetune.policies import FrozenModulesEvalHook
from glipv2_d2.engine.finetune.tuning import apply_tuning, resume_or_load, save_delta
from glipv2_d2.engine.precision import inference_precision
from glipv2_d2.engine.test_time_augmentation import build_tta_model, with_suffix
from glipv2_d2.engine.train.best_checkpoint import (
    BestMetricHook,
    EarlyStop,
    build_plateau_scheduler,
    check_best_metric,
)
from glipv2_d2.engine.train.distributed import average_gradients
from glipv2_d2.engine.train.ema import EMAHook, build_ema
from glipv2_d2.engine.train.experiment_writers import build_experiment_writers, check_writers
from glipv2_d2.engine.train.initialization import InitializeFromImages
from glipv2_d2.engine.train.metrics import MetricsWriter, ResourceMetrics
from glipv2_d2.engine.train.output_lock import output_lock
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.engine.train.resuming import check_resumable
from glipv2_d2.engine.train.schedules import (
    WeightDecaySteps,
    build_lr_scheduler,
    weight_decay_steps,
)
from glipv2_d2.engine.train.train_step import (
    build_accumulating_trainer,
    images_per_micro_batch,
    micro_batch_config,
)
from glipv2_d2.evaluation.background_evaluator import BackgroundEvaluator
from glipv2_d2.evaluation.build import build_evaluator, no_evaluator
from glipv2_d2.file_writing import atomic_open, disk_full, dump_json
from glipv2_d2.model_folder import DELTA_FILE

logger = logging.getLogger(__name__)

FINAL_FILE = "model_final.pth"
"""The checkpoint of the last iteration, in OUTPUT_DIR; the name is Detectron2's."""

BEST_FILE = "model_best.pth"
"""The weights with the best SOLVER.BEST_METRIC, in OUTPUT_DIR."""

RESULTS_FILE = "results.json"
"""Results of the last evaluation, in OUTPUT_DIR: {dataset: {task: {metric: number}}}."""


class Trainer(DefaultTrainer):
    """Trains the model of a config.

    A run that is killed and resumed from its last checkpoint gives the results of an uninterrupted
    run. The checkpoint holds model, optimizer, schedule, moving average, seed and iteration; data
    order and random numbers are functions of seed and iteration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError: the config has an invalid value.
        """
        cfg = complete_config(cfg)
        check_best_metric(cfg)
        check_writers(cfg.WRITERS)
        register_custom(cfg.DATASETS.CUSTOM)
        self._check_test_sets(cfg)
        # Replaces DefaultTrainer.__init__, which has no gradient accumulation, has AMP in fp16 on
        # CUDA only, and needs one GPU per process.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self.tuning = apply_tuning(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(micro_batch_config(cfg))
        self.seed = loader.seed if isinstance(loader, TrainLoader) else training_seed(cfg)
        self._trainer = build_accumulating_trainer(cfg, average_gradients(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GLIPv2Checkpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        # The checkpoint that is resumed, and whether it is one of a training.
        self._resumed_file = ""
        self._has_training_state = False
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def _check_test_sets(self, cfg: CfgNode) -> None:
        """Find out before training which test sets cannot be evaluated after it.

        A test set without an evaluator is only reported: Detectron2 skips it as well.

        Raises:
            ValueError: a test set is not registered.
        """
        own, ours = (inspect.getattr_static(c, "build_evaluator") for c in (type(self), Trainer))
        # A subclass may build evaluators of other types.
        builds_own = own is not ours
        for name in cfg.DATASETS.TEST:
            check_registered(name)
            reason = no_evaluator(name)
            if reason and not builds_own:
                logger.warning("%s. It will not be evaluated", reason)

    def build_hooks(self) -> list[HookBase]:
        hooks: list[HookBase] = [SeedIterations()]
        if steps := weight_decay_steps(self.cfg):
            hooks.append(WeightDecaySteps(self.optimizer, steps, self.cfg.SOLVER.GAMMA))
        # The checkpointer has the model without its DDP wrapper.
        model = self.checkpointer.model
        if num_images := self.cfg.SOLVER.INITIALIZE_FROM_IMAGES:
            size = images_per_micro_batch(self.cfg)
            hooks.append(InitializeFromImages(model, num_images, size))
        if self.tuning is not None:
            hooks.append(FrozenModulesEvalHook(model))
        if self.cfg.SOLVER.EMA_DECAY > 0:
            average = build_ema(self.cfg, model)
            self.checkpointer.add_checkpointable("model_ema", average)
            hooks.append(EMAHook(average))
        timer, *others = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            # Fails before the training if the model or a test set does not support it.
            build_tta_model(self.cfg, model)
            others = [
                EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
                if isinstance(hook, EvalHook)
                else hook
                for hook in others
            ]
        device = next(model.parameters()).device
        hooks += [timer, ResourceMetrics(self.cfg.SOLVER.IMS_PER_BATCH, device), *others]
        self.best_metric_hook = self._build_best_metric_hook()
        if self.best_metric_hook is not None:
            hooks = insert_after_evaluation(hooks, self.best_metric_hook)
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, with valid JSON in metrics.json, and those of ``WRITERS``."""
        output = Path(self.cfg.OUTPUT_DIR)
        output.mkdir(parents=True, exist_ok=True)
        return [
            CommonMetricPrinter(self.max_iter),
            MetricsWriter(str(output / "metrics.json")),
            *build_experiment_writers(self.cfg),
            TensorboardXWriter(str(output)),
        ]

    def _build_best_metric_hook(self) -> BestMetricHook | None:
        solver = self.cfg.SOLVER
        if not solver.BEST_METRIC:
            return None
        return BestMetricHook(
            metric=solver.BEST_METRIC,
            period=self.cfg.TEST.EVAL_PERIOD,
            save_best=functools.partial(
                save_best, self.checkpointer.model, Path(self.cfg.OUTPUT_DIR) / BEST_FILE
            ),
            plateau=build_plateau_scheduler(self.cfg, self.optimizer),
            early_stop_patience=solver.EARLY_STOP_PATIENCE,
        )

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate; with test-time augmentation only after the last iteration, as it is slow."""
        cfg = self.cfg
        if self.iter + 1 < self.max_iter:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.AUG.ENABLED = False
        self._last_eval_results = self.test(cfg, self.model)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's; this project's data loader also continues at the resumed iteration.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file does not match the model, or the last checkpoint has no training
                state, or more iterations than ``SOLVER.MAX_ITER``.
        """
        self._resumed_file = ""
        self._has_training_state = False
        resume_or_load(self.checkpointer, self.cfg, self.tuning, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self._resumed_file = self.checkpointer.get_checkpoint_file()
            self._check_resumed()
            # The checkpoint stores its last iteration.
            self.start_iter = self.iter + 1
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_iteration = self.start_iter * self.cfg.SOLVER.ACCUMULATION_STEPS
        elif self.start_iter > 0:
            logger.info(
                "the %s starts its order of the data anew: only build_train_loader of "
                "glipv2_d2.data.build continues where the run stopped",
                type(self.data_loader).__name__,
            )

    def _check_resumed(self) -> None:
        if not self._has_training_state:
            raise ValueError(
                f"'{self._resumed_file}' has weights, but no state of a training to resume: start "
                "without --resume and with MODEL.WEIGHTS set to it"
            )
        if self.iter + 1 > self.max_iter:
            raise ValueError(
                f"'{self._resumed_file}' was written after {self.iter + 1} iterations, "
                f"SOLVER.MAX_ITER is {self.max_iter}: raise it to go on, or start without --resume "
                "in another OUTPUT_DIR"
            )

    def train(self) -> Any:
        """Detectron2's, with early stopping.

        With ``SOLVER.BEST_METRIC`` the model ends with its best weights. With a fine-tuning policy
        the delta file is written.

        Raises:
            ValueError: another training writes to ``OUTPUT_DIR``.
            OSError: the disk is full; the message names the folder and the last checkpoint.
        """
        with output_lock(self.cfg.OUTPUT_DIR):
            try:
                return self._train()
            except OSError as error:
                # Those of checkpoints and results name their file.
                if disk_full(error) is None or "cannot write" in str(error):
                    raise
                kept = self.checkpointer.what_is_kept()
                raise OSError(
                    error.errno, f"cannot write to '{self.cfg.OUTPUT_DIR}': {error}. {kept}"
                ) from error

    def _train(self) -> Any:
        results = None
        self._write_missing_final_checkpoint()
        try:
            results = super().train()
        except EarlyStop as stop:
            logger.info("%s", stop)
        if self.best_metric_hook is not None and self.best_metric_hook.best is not None:
            comm.synchronize()
            self.checkpointer.load(str(Path(self.cfg.OUTPUT_DIR) / BEST_FILE), checkpointables=[])
        if self.tuning is not None and comm.is_main_process():
            path = Path(self.cfg.OUTPUT_DIR) / DELTA_FILE
            save_delta(self.checkpointer.model, self.tuning, path)
        return results

    def _write_missing_final_checkpoint(self) -> None:
        """For a run that ended in the last iteration before it had written this checkpoint."""
        is_complete = self.start_iter == self.max_iter > 0
        if is_complete and self._resumed_file and Path(self._resumed_file).name != FINAL_FILE:
            # All that is saved is that of the checkpoint that was loaded.
            self.checkpointer.save(Path(FINAL_FILE).stem, iteration=self.iter)

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss or gradient is not finite. The message names the images. The
                weights are not updated.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"iteration {self.iter}: {error}\nThe weights were not updated. Resume from the "
                f"last checkpoint in {self.cfg.OUTPUT_DIR} with a lower SOLVER.BASE_LR (now "
                f"{self.cfg.SOLVER.BASE_LR}) or a longer SOLVER.WARMUP_ITERS (now "
                f"{self.cfg.SOLVER.WARMUP_ITERS}), or skip such steps (SOLVER.NON_FINITE skip)"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is damaged, or that of another config or trainer.
        """
        try:
            check_resumable(state_dict, self.optimizer)
            super().load_state_dict(state_dict)
            # Detectron2's own trainers have none.
            self.seed = int(state_dict.get("seed", self.seed))
            self.iter = int(state_dict["iteration"])
        # What a state has in place of what is expected may be anything.
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "the training state of the checkpoint does not fit this config "
                f"({type(error).__name__}: {error}): resume with the config that it was written "
                "with, or start without --resume in another OUTPUT_DIR"
            ) from error
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seed = self.seed
        self._has_training_state = True

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Detectron2's; also writes the results to ``OUTPUT_DIR/results.json``.

        With ``TEST.AUG.ENABLED`` the datasets are also evaluated with test-time augmentation. These
        results have the suffix ``_TTA``: of the dataset, or of the task if there is one dataset.

        Raises:
            ValueError: the model, a setting or a dataset does not support test-time augmentation.
        """
        augmented_model = build_tta_model(cfg, model) if cfg.TEST.AUG.ENABLED else None
        per_dataset = cls._test_datasets(cfg, model, evaluators)
        results = dict(per_dataset)
        if augmented_model is not None:
            augmented = cls._test_with_tta(cfg, augmented_model, evaluators)
            results |= with_suffix(augmented)
            per_dataset = {
                name: tasks | with_suffix(augmented.get(name, {}))
                for name, tasks in per_dataset.items()
            }
        if comm.is_main_process():
            with atomic_open(Path(cfg.OUTPUT_DIR) / RESULTS_FILE) as file:
                file.write(dump_json(per_dataset, indent=1).encode())
        return next(iter(per_dataset.values())) if len(per_dataset) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The part of :meth:`test` with test-time augmentation, as in Detectron2's train_net."""
        augmented = cls._test_with_tta(cfg, build_tta_model(cfg, model), None)
        return with_suffix(next(iter(augmented.values())) if len(augmented) == 1 else augmented)

    @classmethod
    def _test_with_tta(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None
    ) -> dict[str, Any]:
        """Results per dataset of a model with test-time augmentation."""
        logger.info("Running inference with test-time augmentation ...")
        if evaluators is not None:
            return cls._test_datasets(cfg, model, evaluators)
        folder = Path(cfg.OUTPUT_DIR) / "inference_TTA"
        built: dict[str, DatasetEvaluator] = {}
        for name in cfg.DATASETS.TEST:
            # Without an evaluator: skipped, as in the evaluation without augmentation.
            with contextlib.suppress(NotImplementedError):
                built[name] = cls.build_evaluator(cfg, name, str(folder / name))
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = tuple(built)
        return cls._test_datasets(cfg, model, list(built.values()))

    @classmethod
    def _test_datasets(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None
    ) -> dict[str, Any]:
        """Results per dataset."""
        with inference_precision(cfg):
            results = super().test(cfg, model, evaluators)
        names = list(cfg.DATASETS.TEST)
        return {names[0]: results} if len(names) == 1 else results

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Build the endless loader of training batches; subclasses may return any other.

        Args:
            cfg: ``SOLVER.IMS_PER_BATCH`` is that of a micro-batch; a step takes
                ``SOLVER.ACCUMULATION_STEPS`` of them.
        """
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator of a test set.

        Args:
            output_folder: for result files; None: ``OUTPUT_DIR/inference/DATASET``.

        Raises:
            NoEvaluatorError: the dataset has no known ``evaluator_type``. Detectron2's ``test``
                then skips it.
        """
        return BackgroundEvaluator(build_evaluator(cfg, dataset_name, output_folder))


def insert_after_evaluation(hooks: Sequence[HookBase | None], inserted: HookBase) -> list[HookBase]:
    """Insert a hook after the evaluation hook, and move the checkpointers behind it.

    Detectron2 writes a checkpoint before it evaluates. A run resumed from that checkpoint would
    miss the result of the evaluation.
    """
    ordered: list[HookBase] = []
    checkpointers = [hook for hook in hooks if isinstance(hook, PeriodicCheckpointer)]
    for hook in hooks:
        if hook is None or hook in checkpointers:
            continue
        ordered.append(hook)
        if isinstance(hook, EvalHook):
            ordered += [inserted, *checkpointers]
    return ordered


def save_best(model: nn.Module, path: Path) -> None:
    """Write the weights without the training state, in the main process."""
    if comm.is_main_process():
        save_weights(model, path)


class SeedIterations(HookBase):
    """Seeds every random number generator before each step.

    Dropout then depends on seed and iteration only, and checkpoints need no random state.
    """

    def before_step(self) -> None:
        entropy = [self.trainer.seed, comm.get_rank(), self.trainer.iter]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
