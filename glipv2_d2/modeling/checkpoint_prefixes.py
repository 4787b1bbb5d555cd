"""Names of weights that checkpoints leave out, collected over the parts of a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ExcludesWeights(Protocol):
    """A module with frozen weights that are loaded from elsewhere, e.g. an installed package.

    Attributes:
        checkpoint_excluded: prefixes of parameter names, relative to the module.
    """

    checkpoint_excluded: tuple[str, ...]


def excluded_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Prefixes, relative to ``model``, of all weights that its modules exclude from checkpoints."""
    return tuple(
        f"{name}.{prefix}"
        for name, module in model.named_modules()
        if isinstance(module, ExcludesWeights)
        for prefix in module.checkpoint_excluded
    )
