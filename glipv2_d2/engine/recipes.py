"""How each policy is trained on a small data set: config keys and their values.

From the GLIP paper (appendix E.3, E.4) and the released code, where they say it: see the comments.
``configs/finetune/odinw_*.yaml`` are these recipes for GLIP-T, without that for masks: ODinW has
boxes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Of all policies (GLIP paper, E.3).
COMMON: dict[str, Any] = {
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BACKBONE_LR_FACTOR": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPlateauLR",
    "SOLVER.GAMMA": 0.1,
    # Our choice: a data set of a few images is through with its schedule in fewer iterations than
    # a pre-training's warm-up.
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BEST_METRIC": "bbox/AP",
    # The weights of the best evaluation are kept instead (our choice).
    "SOLVER.EMA_DECAY": 0.0,
    # All names in the order of the data set, as at inference.
    "DATALOADER.PROMPT.SHUFFLE": False,
    "DATALOADER.PROMPT.FULL_NEGATIVES_PROB": 1.0,
}

OF_POLICY: dict[str, dict[str, Any]] = {
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
    # Rates as of the full fine-tuning's text encoder (our choice).
    "text_only": {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.LANGUAGE_LR_FACTOR": 0.1,
        "SOLVER.WEIGHT_DECAY": 0.05,
    },
    # The rate is the LoRA paper's order of magnitude; no decay, which would pull to the base
    # anyway (our choice).
    "lora": {"SOLVER.BASE_LR": 1e-3, "SOLVER.WEIGHT_DECAY": 0.0},
    # As in glipv2_mini_phrases.yaml (our choice).
    "comparison": {"SOLVER.BASE_LR": 6e-3, "SOLVER.WEIGHT_DECAY": 0.0},
    # New parts learn as in a pre-training (our choice); the boxes stay what they are.
    "mask_heads": {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.WEIGHT_DECAY": 0.05,
        "SOLVER.BEST_METRIC": "segm/AP",
    },
}


@dataclass(frozen=True)
class Patience:
    """Evaluations without a new best (GLIP paper, E.3; one evaluation per epoch).

    Attributes:
        plateau: as many lower the learning rate when one more follows.
        early_stop: as many end the training.
    """

    plateau: int
    early_stop: int


FEW_SHOT_PATIENCE = Patience(plateau=3, early_stop=8)
FULL_DATA_PATIENCE = Patience(plateau=2, early_stop=4)
MAX_EPOCHS = 200
"""The GLIP paper's, E.3: early stopping comes first."""


def recipe(policy: str, *, few_shot: bool) -> dict[str, Any]:
    """Config keys and values of a policy, without what depends on the size of the data.

    A policy of one's own that is not in the table gets the values of ``full``.
    """
    patience = FEW_SHOT_PATIENCE if few_shot else FULL_DATA_PATIENCE
    return {
        **COMMON,
        **OF_POLICY.get(policy, OF_POLICY["full"]),
        "MODEL.TUNING.NAME": policy,
        "SOLVER.PLATEAU_PATIENCE": patience.plateau,
        "SOLVER.EARLY_STOP_PATIENCE": patience.early_stop,
    }
