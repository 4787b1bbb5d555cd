"""Detectron2's Python configs (LazyConfig) of models whose settings are in a YAML file.

The YAML file stays the one description of a model: the nodes here name it, and build their part of
it with ``settings.opts``, alternating keys and values, on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyCall
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.projects import config_directory

CONFIGS = config_directory(Path(__file__).parents[1])
# Keys that other nodes have read from the YAML file already: overrides would have no effect.
_OTHER_NODES = {
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.GAMMA": "lr_multiplier.scheduler.values",
    "SOLVER.MAX_ITER": "train.max_iter and lr_multiplier.scheduler.num_updates",
    "SOLVER.STEPS": "lr_multiplier.scheduler.milestones",
    "SOLVER.WARMUP_FACTOR": "lr_multiplier.warmup_factor",
    "SOLVER.WARMUP_ITERS": "lr_multiplier.warmup_length",
    "SOLVER.WARMUP_METHOD": "lr_multiplier.warmup_method",
    "TEST.EVAL_PERIOD": "train.eval_period",
}
# Resolved when a node is instantiated, so that changed settings reach every part.
_SETTINGS = {"file": "${settings.file}", "opts": "${settings.opts}"}


def lazy_config(file: str) -> dict[str, Any]:
    """The nodes of a Python config: ``settings``, ``model``, ``optimizer``, ``lr_multiplier``,
    ``dataloader`` and ``train``, as those of Detectron2's.

    Args:
        file: a YAML file, relative to ``configs/``.
    """
    cfg = load_config(CONFIGS / file)
    solver = cfg.SOLVER
    return {
        "settings": DictConfig({"file": file, "opts": []}),
        "model": LazyCall(model_of)(**_SETTINGS),
        "optimizer": LazyCall(optimizer_of)(**_SETTINGS),
        "lr_multiplier": LazyCall(WarmupParamScheduler)(
            scheduler=LazyCall(MultiStepParamScheduler)(
                values=[solver.GAMMA**k for k in range(len(solver.STEPS) + 1)],
                milestones=list(solver.STEPS),
                num_updates=solver.MAX_ITER,
            ),
            warmup_factor=solver.WARMUP_FACTOR,
            warmup_length=solver.WARMUP_ITERS / solver.MAX_ITER,
            warmup_method=solver.WARMUP_METHOD,
        ),
        "dataloader": DictConfig(
            {
                "train": LazyCall(train_loader_of)(**_SETTINGS),
                "test": LazyCall(evaluation_loader_of)(**_SETTINGS),
                "evaluator": LazyCall(evaluator_of)(**_SETTINGS),
            }
        ),
        "train": DictConfig(
            {
                "output_dir": "output",
                "init_checkpoint": cfg.MODEL.WEIGHTS,
                "max_iter": solver.MAX_ITER,
                "amp": {"enabled": bool(solver.AMP.ENABLED)},
                "checkpointer": {"period": solver.CHECKPOINT_PERIOD, "max_to_keep": 100},
                "eval_period": cfg.TEST.EVAL_PERIOD,
                "log_period": 20,
                "device": "cuda",
            }
        ),
    }


def _cfg(file: str, opts: Sequence[Any]) -> CfgNode:
    options: Any = OmegaConf.to_container(opts) if isinstance(opts, ListConfig) else opts
    for key in options[::2]:
        if key in _OTHER_NODES:
            raise ValueError(f"settings.opts has {key}: set {_OTHER_NODES[key]} instead")
    return load_config(CONFIGS / file, list(options))


def model_of(file: str, opts: Sequence[Any] = ()) -> nn.Module:
    """The model of a YAML file."""
    return build_model(_cfg(file, opts))


def optimizer_of(model: nn.Module, file: str, opts: Sequence[Any] = ()) -> torch.optim.Optimizer:
    """The optimizer of a YAML file, of the parameters of ``model``."""
    return build_optimizer(_cfg(file, opts), model)


def train_loader_of(file: str, opts: Sequence[Any] = ()) -> TrainLoader:
    """The training loader of a YAML file."""
    return build_train_loader(_cfg(file, opts))


def evaluation_loader_of(file: str, opts: Sequence[Any] = ()) -> Any:
    """The loader of the first test set of a YAML file."""
    cfg = _cfg(file, opts)
    return build_test_loader(cfg, cfg.DATASETS.TEST[0])


def evaluator_of(file: str, opts: Sequence[Any] = ()) -> DatasetEvaluators:
    """The evaluator of the first test set of a YAML file."""
    cfg = _cfg(file, opts)
    return DatasetEvaluators([build_evaluator(cfg, cfg.DATASETS.TEST[0])])
