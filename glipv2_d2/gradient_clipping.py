"""Gradient clipping by the norm over all gradients, for Detectron2's own solver, too.

Detectron2's ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is "value" or "norm", per parameter. Projects add
"full_model", the norm over all parameters, which Detectron2's solver rejects. Importing this module
makes it clip per parameter instead, with a warning.
"""

from __future__ import annotations

import logging

from detectron2.solver.build import GradientClipType

logger = logging.getLogger(__name__)

FULL_MODEL = "full_model"
"""The value of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` for the norm over all gradients."""

CLIP_TYPES = (*(kind.value for kind in GradientClipType), FULL_MODEL)
"""Valid values of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``."""


def _nearest_type(_cls: type[GradientClipType], value: object) -> GradientClipType | None:
    """Detectron2's type for a value that it does not have; None: an error, as before."""
    if value != FULL_MODEL:
        return None
    logger.warning(
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'full_model', which Detectron2's solver does not have: "
        "it clips the norm of each parameter's gradient (as 'norm'). It does not read this "
        "project's keys either: SOLVER.OPTIMIZER (it builds SGD), SOLVER.*_LR_FACTOR and, of its "
        "trainer, PLATEAU_PATIENCE, ACCUMULATION_STEPS, EMA_DECAY and AMP.PRECISION. "
        "So its parameter groups do not match those of this project's checkpoints on resuming. "
        "For the optimizer of the config, let your trainer's build_optimizer return "
        "glipv2_d2.engine.train.param_groups.build_optimizer(cfg, model)"
    )
    return GradientClipType.NORM


# Enum calls it for values without a member; Detectron2's enum has none of its own.
GradientClipType._missing_ = classmethod(_nearest_type)
