"""Recipes: how each policy is trained on a small dataset, as config keys and values.

From the GLIP paper (appendix E.3, E.4) and the released code where they specify a value; comments
mark our own choices. ``configs/finetune/odinw_*.yaml`` are these recipes for GLIP-T, without
``mask_heads``: ODinW has boxes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of all policies (GLIP paper, E.3).
COMMON: dict[str, Any] = {
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BACKBONE_LR_FACTOR": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    # Our choice: the schedule on a few images has fewer iterations than a pre-training's warm-up.
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BEST_METRIC": "bbox/AP",
    # Pictures of the training in TensorBoard.
    "VIS_PERIOD": 50,
    # The weights of the best evaluation are kept instead (our choice).
    "SOLVER.EMA_DECAY": 0.0,
    # All class names in the order of the dataset, as at inference.
    "DATALOADER.PROMPT.SHUFFLE": False,
    "DATALOADER.PROMPT.FULL_NEGATIVES_PROB": 1.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    "full": {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.LANGUAGE_LR_FACTOR": 0.1,
        "SOLVER.WEIGHT_DECAY": 0.05,
        # The patch embedding and the first stage: "the bottom two layers".
        "MODEL.SWIN.FROZEN_STAGES": 2,
    },
    "linear_probe": {"SOLVER.BASE_LR": 1e-4, "SOLVER.WEIGHT_DECAY": 0.05},
    "prompt": {
        "SOLVER.BASE_LR": 0.05,
        # The table is part of the language backbone here.
        "SOLVER.LANGUAGE_LR_FACTOR": 1.0,
        "SOLVER.WEIGHT_DECAY": 0.25,
    },
    # As the table of positions (our choice).
    "class_prompt": {
        "SOLVER.BASE_LR": 0.05,
        "SOLVER.LANGUAGE_LR_FACTOR": 1.0,
        "SOLVER.WEIGHT_DECAY": 0.25,
    },
    # The rates of the text encoder in full fine-tuning (our choice).
    "text_only": {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.LANGUAGE_LR_FACTOR": 0.1,
        "SOLVER.WEIGHT_DECAY": 0.05,
    },
    # The rate has the LoRA paper's order of magnitude. No decay: it would only pull the adapters
    # towards the base (our choice).
    "lora": {"SOLVER.BASE_LR": 1e-3, "SOLVER.WEIGHT_DECAY": 0.0},
    # New layers are trained as in pre-training (our choice); the boxes do not change.
    "mask_heads": {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.WEIGHT_DECAY": 0.05,
        "SOLVER.BEST_METRIC": "segm/AP",
    },
}
"""Policy -> the values that it adds to :data:`COMMON`; see :func:`register_recipe`."""


@dataclass(frozen=True)
class Patience:
    """Evaluations in a row without a new best value (GLIP paper, E.3; one evaluation per epoch).

    Attributes:
        plateau: the learning rate is reduced after more than this many.
        early_stop: training stops after this many.
    """

    plateau: int
    early_stop: int


FEW_SHOT_PATIENCE = Patience(plateau=3, early_stop=8)
FULL_DATA_PATIENCE = Patience(plateau=2, early_stop=4)
MAX_EPOCHS = 200
"""The GLIP paper's, E.3; early stopping ends training before."""


def register_recipe(policy: str, values: Mapping[str, Any]) -> None:
    """Add the recipe of a policy, e.g. of one that a project registers.

    Args:
        values: config keys and values, over those of :data:`COMMON`.

    Raises:
        ValueError: the policy already has a recipe.
    """
    if policy in RECIPES:
        raise ValueError(f"the policy {policy!r} already has a recipe")
    RECIPES[policy] = dict(values)


FITTED_SCHEDULE: dict[str, Any] = {
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 10,
    "SOLVER.PLATEAU_PATIENCE": -1,
    "SOLVER.EARLY_STOP_PATIENCE": 0,
}
"""Of a training whose length is given: the learning rate falls to zero at its end (our choice)."""


WITHOUT_BOXES = frozenset({"mask_heads", "text_heads"})
"""The policies that leave the boxes as they are."""


def model_recipe(policy: str, values: Sequence[Any]) -> dict[str, Any]:
    """The part of ``MODEL.TUNING.RECIPE`` that applies to a policy.

    It is for policies that train boxes: all of it for ``full``, of others the model's keys.

    >>> model_recipe("prompt", ["MODEL.MASK_ON", False, "SOLVER.BASE_LR", 0.1])
    {'MODEL.MASK_ON': False}

    Raises:
        ValueError: the values are not pairs.
    """
    if len(values) % 2 != 0:
        raise ValueError(f"MODEL.TUNING.RECIPE must be pairs of KEY VALUE, but is {list(values)}")
    pairs = dict(zip(values[::2], values[1::2], strict=True))
    if policy in WITHOUT_BOXES:
        return {}
    return {key: v for key, v in pairs.items() if policy == "full" or key.startswith("MODEL.")}


def recipe(policy: str, *, few_shot: bool) -> dict[str, Any]:
    """Config keys and values of a policy, without those that depend on the size of the data.

    A policy without a recipe gets that of ``full``.
    """
    patience = FEW_SHOT_PATIENCE if few_shot else FULL_DATA_PATIENCE
    return {
        **COMMON,
        **RECIPES.get(policy, RECIPES["full"]),
        "MODEL.TUNING.NAME": policy,
        "SOLVER.PLATEAU_PATIENCE": patience.plateau,
        "SOLVER.EARLY_STOP_PATIENCE": patience.early_stop,
    }
