"""Whether a training can continue from the state that another trainer wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Settings of a parameter group that select an implementation, not an algorithm, or that schedules
# add. They differ between versions of torch.
_NOT_COMPARED = {
    *("params", "foreach", "fused", "capturable", "differentiable", "maximize"),
    *("initial_lr", "decoupled_weight_decay"),
}


def check_resumable(state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check that the optimizer's state in a trainer's ``state_dict`` fits an optimizer.

    torch loads the state of another algorithm without an error, and the next step fails.

    Raises:
        ValueError: it does not; the message lists the differences.
    """
    saved = state_dict.get("_trainer", {}).get("optimizer")
    if saved is None:
        raise ValueError(
            "the checkpoint has no state of an optimizer, so it cannot be resumed: start from its "
            "weights (MODEL.WEIGHTS), without --resume"
        )
    differences = _differences(saved["param_groups"], optimizer.param_groups)
    if differences:
        raise ValueError(
            f"the checkpoint's optimizer does not match this {type(optimizer).__name__}: "
            f"{'; '.join(differences)}. Resume with the trainer and the SOLVER keys that wrote the "
            "checkpoint, or start from its weights (MODEL.WEIGHTS), without --resume"
        )


def _differences(saved: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[str]:
    found = []
    settings, own = (
        {key for group in part for key in group} - _NOT_COMPARED for part in (saved, groups)
    )
    if settings != own:
        found.append(f"its settings are {sorted(settings)}, here {sorted(own)}")
    sizes, own_sizes = ([len(group["params"]) for group in part] for part in (saved, groups))
    if sizes != own_sizes:
        found.append(f"its parameter groups have {sizes} parameters, here {own_sizes}")
    return found
