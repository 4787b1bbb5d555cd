"""Detectron2's checkpointer, strict, and reading GLIP's and ImageNet Swin files, too."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from glipv2_d2.checkpoint.account import Account, compare, list_names
from glipv2_d2.checkpoint.glip_names import from_glip, is_recomputed, strip_wrapper
from glipv2_d2.checkpoint.reading import Layout, read_checkpoint, recognise, require_file
from glipv2_d2.checkpoint.swin_names import from_swin, in_imagenet_file
from glipv2_d2.checkpoint.writing import (
    atomic_open,
    excluded_prefixes,
    loss_prefixes,
    optional_prefixes,
    state_to_save,
)

logger = logging.getLogger(__name__)

# Formats of other projects, which Detectron2 reads and matches by its own rules.
_DETECTRON2_SUFFIXES = (".pkl", ".pyth")


class GLIPv2Checkpointer(DetectionCheckpointer):
    """Saves whole files only; loads our files, GLIP's, and ImageNet Swin weights.

    Used as Detectron2's, by name or with its trainer. What does not fit the model is one error that
    lists every name, where Detectron2 logs and goes on. Files with the suffixes ``.pkl`` and
    ``.pyth`` are other projects' and Detectron2's to load: it trusts and unpickles them.
    """

    def load(
        self, path: str, checkpointables: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load ``path``, a local file or a URL; "" loads nothing.

        Afterwards ``untrained`` has the names of optional parts that the file lacks.

        Returns:
            What else lies in a file of ours, e.g. ``iteration``; nothing of another project's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or does not fit the model.
        """
        self._source = path
        self.untrained: frozenset[str] = frozenset()
        if path:
            require_file(self.path_manager.get_local_path(path.partition("?")[0]))
        try:
            return super().load(path, checkpointables, **kwargs)
        finally:
            # Detectron2 resets it only after success and then refuses to load again.
            self._parsed_url_during_load = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth``, whole or not at all.

        Args:
            kwargs: entries beside the model and the checkpointables.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        basename = f"{name}.pth"
        path = os.path.join(self.save_dir, basename)
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_open(path) as file:
            torch.save({"model": state_to_save(self.model), **states, **kwargs}, file)
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that ``--resume`` goes on from."""
        with atomic_open(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        asked_of_detectron2 = self._parsed_url_during_load and self._parsed_url_during_load.query
        if asked_of_detectron2 or filename.endswith(_DETECTRON2_SUFFIXES):
            return super()._load_file(filename)
        checkpoint = read_checkpoint(filename)
        if recognise(checkpoint["model"]) is Layout.NATIVE:
            return checkpoint
        # Their optimizer and iteration belong to another training.
        if "model_ema" in checkpoint:
            self.logger.info("The averaged weights of the file, model_ema, are not used.")
        return {"model": checkpoint["model"]}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False) or "__author__" in checkpoint:
            return super()._load_model(checkpoint)
        account = load_weights(self.model, checkpoint.pop("model"), source=f"'{self._source}'")
        self.logger.info(f"Keys of '{self._source}': {account}")
        optional, loaded = optional_prefixes(self.model), set(account.loaded.values())
        self.untrained = frozenset(
            name
            for name in self.model.state_dict()
            if name.startswith(optional) and name not in loaded
        )
        return None


def load_weights(model: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> Account:
    """Copy weights of any layout into ``model``, cast to its dtypes.

    Weights of parts that only some configs have (``checkpoint_optional_prefixes`` of the model) may
    be missing, which a warning says, or be more than the model has: a second phase of training may
    have fewer losses than the first, or masks on top of its boxes.

    Args:
        state_dict: names in our layout, GLIP's, or the original Swin release's. The latter are an
            initialisation: what they do not have stays as it was built.
        source: what errors call it.

    Raises:
        ValueError: names that are missing, unknown or of another shape, all of them in one message.
            The model is as it was.
    """
    layout = recognise(state_dict)
    weights, account = _to_our_names(state_dict, layout)
    excluded, optional = excluded_prefixes(model), optional_prefixes(model)

    def may_lack(name: str) -> bool:
        return (
            is_recomputed(name)
            or name.startswith((*excluded, *optional))
            or (layout is Layout.SWIN and not in_imagenet_file(name))
        )

    model_state = model.state_dict()
    unused = [n for n in weights if n.startswith(optional) and n not in model_state]
    weights = {name: value for name, value in weights.items() if name not in unused}
    account = account.without(unused, "weights of parts that this config does not have")
    if weights.keys().isdisjoint(model_state):
        raise ValueError(
            f"{source} has no weight of this model; its first names are "
            f"{', '.join(list(state_dict)[:3])}. MODEL.WEIGHTS takes files of this project, of "
            "GLIP, and of Swin's original release (the latter for MODEL.BACKBONE.NAME "
            "build_swin_fpn_backbone)."
        )
    if mismatch := compare(weights, model_state, unknown=account.unknown, may_lack=may_lack):
        raise ValueError(mismatch.message(f"{source} ({layout.value} names)"))
    model.load_state_dict(weights, strict=False)
    losses = loss_prefixes(model)
    untrained = [n for n in model_state if n.startswith(optional) and n not in weights]
    if of_losses := [n for n in untrained if n.startswith(losses)]:
        # Shipped files leave them out: nobody but training needs them.
        logger.info(
            "%s has no weights of parts that only losses read; training starts them anew:\n%s",
            source,
            "\n".join(list_names(of_losses)),
        )
    if untrained := [n for n in untrained if not n.startswith(losses)]:
        logger.warning(
            "%s has no weights of these parts, which start untrained:\n%s",
            source,
            "\n".join(list_names(untrained)),
        )
    return account


def _to_our_names(
    state_dict: dict[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], Account]:
    if layout is Layout.GLIP:
        return from_glip(state_dict)
    plain = strip_wrapper(state_dict)
    if layout is Layout.SWIN:
        return from_swin(plain)
    return plain, Account({name: name for name in plain}, (), {}, ())
