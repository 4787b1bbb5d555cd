"""The config of a fine-tuning: the recipe of its policy, its datasets and its length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from glipv2_d2.engine.finetune.few_shot import COPIES
from glipv2_d2.engine.finetune.recipes import MAX_EPOCHS, model_recipe, recipe
from glipv2_d2.engine.setup import load_config

Schedule = Callable[[float], Mapping[str, Any]]
"""Iterations per epoch -> config keys and values."""


def training_config(
    config: str | Path,
    opts: Sequence[str],
    *,
    policy: str,
    shots: int | None,
    num_images: int,
    num_classes: int,
    schedule: Schedule,
    fixed: Mapping[str, Any],
    batch: int | None = None,
) -> CfgNode:
    """The config of the training of a policy.

    Args:
        config: of the base model; its ``MODEL.TUNING.RECIPE`` has precedence over the policy's.
        opts: overrides, with precedence over both recipes.
        shots: images per class; None or 0: all images.
        num_images: for training, with boxes.
        schedule: the values that depend on the length of an epoch.
        fixed: values with precedence over ``opts``, such as datasets and the output folder.
        batch: images of an iteration; None: the recipe's.
    """
    of_model = model_recipe(policy, load_config(config, opts).MODEL.TUNING.RECIPE)
    values = recipe(policy, few_shot=bool(shots)) | of_model
    # Every prompt has all class names, as at inference.
    values["DATALOADER.PROMPT.MAX_NEGATIVES"] = num_classes
    if batch is not None:
        values["SOLVER.IMS_PER_BATCH"] = batch
    cfg = load_config(config, [*flatten(values), *opts])
    images_per_epoch = num_images * COPIES.get(shots or 0, 1)
    values |= schedule(images_per_epoch / cfg.SOLVER.IMS_PER_BATCH)
    return load_config(config, [*flatten(values), *opts, *flatten(fixed)])


def until_no_gain(iterations_per_epoch: float) -> dict[str, Any]:
    """The length of a training that early stopping ends, evaluated after each epoch."""
    period = math.ceil(iterations_per_epoch)
    return {
        "SOLVER.MAX_ITER": MAX_EPOCHS * period,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
    }


def flatten(values: Mapping[str, Any]) -> list[Any]:
    """Keys and values in turn."""
    return list(chain.from_iterable(values.items()))
