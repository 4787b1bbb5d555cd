"""Which weights of a model checkpoints leave out, may lack, or need for losses only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)

_keeps_excluded: ContextVar[bool] = ContextVar("_keeps_excluded", default=False)


class CheckpointPrefixes(nn.Module):
    """A module some of whose weights are special to checkpoints.

    Attributes are prefixes of parameter names, relative to the module. A module of this class may
    be any part of a model. Its hooks apply them wherever a state dict is saved or loaded, also by
    Detectron2: ``state_dict`` leaves out what checkpoints omit, and ``load_state_dict`` does not
    report it as missing.

    Attributes:
        checkpoint_excluded: frozen weights that are loaded from elsewhere, e.g. an installed
            package. Checkpoints omit them.
        checkpoint_optional: weights that either a checkpoint or the model may lack, such as loss
            and task heads, which only some configs have.
        checkpoint_neutral: of the optional ones, those without effect before they are trained: a
            model without them in its file predicts the same.
        checkpoint_loss_only: weights that only losses use.
    """

    checkpoint_excluded: tuple[str, ...] = ()
    checkpoint_optional: tuple[str, ...] = ()
    checkpoint_neutral: tuple[str, ...] = ()
    checkpoint_loss_only: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_state_dict_post_hook(_leave_out_excluded)
        self.register_load_state_dict_pre_hook(_prepare_loading)

    def convert_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename weights of another project in a state dict that is being loaded, in place.

        Args:
            prefix: of this module in the state dict, "" for a model.
        """


def full_state_dict(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The state dict with the weights that checkpoints omit."""
    token = _keeps_excluded.set(True)
    try:
        return module.state_dict(prefix=prefix)
    finally:
        _keeps_excluded.reset(token)


def _leave_out_excluded(
    module: CheckpointPrefixes, state_dict: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    """After state_dict(): drop the weights that checkpoints omit."""
    if module.checkpoint_excluded and not _keeps_excluded.get():
        excluded = tuple(prefix + name for name in module.checkpoint_excluded)
        for name in [name for name in state_dict if name.startswith(excluded)]:
            del state_dict[name]


def _prepare_loading(
    module: CheckpointPrefixes, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Before load_state_dict(): convert names, and keep the values of what a file may lack."""
    module.convert_state_dict(state_dict, prefix)
    losses = tuple(prefix + name for name in module.checkpoint_loss_only)
    names = (*(prefix + name for name in module.checkpoint_excluded), *losses)
    if not names:
        return
    own = full_state_dict(module, prefix)
    lacking = [name for name in own if name.startswith(names) and name not in state_dict]
    state_dict.update({name: own[name] for name in lacking})
    if any(name.startswith(losses) for name in lacking):
        logger.info("no weights of %s, which only losses use: they keep theirs", ", ".join(losses))


def excluded_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_excluded`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_excluded)


def optional_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_optional`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_optional)


def neutral_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes ``checkpoint_neutral`` of all parts, relative to ``model``."""
    return _collect(model, lambda module: module.checkpoint_neutral)


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
