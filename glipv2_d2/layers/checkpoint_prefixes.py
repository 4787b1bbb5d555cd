"""Which weights of a model checkpoints leave out, may lack, or need for losses only."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class CheckpointPrefixes(nn.Module):
    """A module some of whose weights are special to checkpoints.

    Attributes are prefixes of parameter names, relative to the module. A module of this class may
    be any part of a model.

    Attributes:
        checkpoint_excluded: frozen weights that are loaded from elsewhere, e.g. an installed
            package. Checkpoints omit them.
        checkpoint_optional: weights that either a checkpoint or the model may lack, such as loss
            and task heads, which only some configs have.
        checkpoint_loss_only: weights that only losses use.
    """

    checkpoint_excluded: tuple[str, ...] = ()
    checkpoint_optional: tuple[str, ...] = ()
    checkpoint_loss_only: tuple[str, ...] = ()


def excluded_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_excluded`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_excluded)


def optional_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_optional`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_optional)


def loss_only_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_loss_only`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_loss_only)


def _collect(
    model: nn.Module, prefixes_of: Callable[[CheckpointPrefixes], tuple[str, ...]]
) -> tuple[str, ...]:
    return tuple(
        f"{name}.{prefix}" if name else prefix
        for name, module in model.named_modules()
        if isinstance(module, CheckpointPrefixes)
        for prefix in prefixes_of(module)
    )
