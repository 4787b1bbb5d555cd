"""A strict version of Detectron2's checkpointer that also loads GLIP and ImageNet Swin files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from glipv2_d2.checkpoint.file_reading import Layout, detect_layout, read_checkpoint, require_file
from glipv2_d2.checkpoint.file_writing import state_to_save
from glipv2_d2.checkpoint.glip_names import from_glip, is_recomputed, strip_wrapper
from glipv2_d2.checkpoint.load_report import LoadReport, compare, list_names
from glipv2_d2.checkpoint.swin_names import from_swin, in_imagenet_file
from glipv2_d2.file_writing import atomic_open
from glipv2_d2.layers.checkpoint_prefixes import (
    excluded_prefixes,
    loss_only_prefixes,
    optional_prefixes,
)

logger = logging.getLogger(__name__)

# Formats of other projects, which Detectron2 loads and matches by its own rules.
_DETECTRON2_SUFFIXES = (".pkl", ".pyth")


class GLIPv2Checkpointer(DetectionCheckpointer):
    """Saves files atomically; loads files of this project, of GLIP, and ImageNet Swin weights.

    A drop-in replacement for Detectron2's checkpointer. A mismatch with the model raises one error
    that lists all names, where Detectron2 only logs a warning. Files with the suffixes ``.pkl`` and
    ``.pyth`` belong to other projects and are loaded by Detectron2, which unpickles them.
    """

    def load(
        self, path: str, checkpointables: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load ``path``, a local file or a URL; "" loads nothing.

        Afterwards ``untrained`` holds the names of optional parameters that the file lacks.

        Returns:
            Other entries of a file of this project, e.g. ``iteration``; empty for other files.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not a checkpoint, or does not match the model.
        """
        self._source = path
        self.untrained: frozenset[str] = frozenset()
        if path:
            require_file(self.path_manager.get_local_path(path.partition("?")[0]))
        try:
            return super().load(path, checkpointables, **kwargs)
        finally:
            # Detectron2 resets it only after success, and could not load again after an error.
            self._parsed_url_during_load = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` atomically.

        Args:
            kwargs: entries in addition to the model and the checkpointables.
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
        """Record the file from which ``--resume`` continues."""
        with atomic_open(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        has_query = self._parsed_url_during_load and self._parsed_url_during_load.query
        if has_query or filename.endswith(_DETECTRON2_SUFFIXES):
            return super()._load_file(filename)
        checkpoint = read_checkpoint(filename)
        if detect_layout(checkpoint["model"]) is Layout.NATIVE:
            return checkpoint
        # Optimizer and iteration of these files belong to another training run.
        if "model_ema" in checkpoint:
            self.logger.info("The averaged weights of the file, model_ema, are not used.")
        return {"model": checkpoint["model"]}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False) or "__author__" in checkpoint:
            return super()._load_model(checkpoint)
        report = load_weights(self.model, checkpoint.pop("model"), source=f"'{self._source}'")
        self.logger.info(f"Keys of '{self._source}': {report}")
        optional, loaded = optional_prefixes(self.model), set(report.loaded.values())
        self.untrained = frozenset(
            name
            for name in self.model.state_dict()
            if name.startswith(optional) and name not in loaded
        )
        return None


def load_weights(model: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> LoadReport:
    """Copy weights of any layout into ``model``, cast to its dtypes.

    Optional parameters (``checkpoint_optional``) may be missing, which logs a warning, or be in
    excess: a second training phase may have fewer losses than the first, or an additional mask
    head.

    Args:
        state_dict: with names of this project, of GLIP, or of the original Swin release. A Swin
            file initialises the backbone only; other parameters keep their initial values.
        source: description of the file in error messages.

    Raises:
        ValueError: names are missing, unknown or have another shape; the message lists all of
            them. The model is unchanged.
    """
    layout = detect_layout(state_dict)
    weights, report = _rename(state_dict, layout)
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
    report = report.without(unused, "weights of parts that this config does not have")
    if weights.keys().isdisjoint(model_state):
        raise ValueError(
            f"{source} has no weights of this model; its first names are "
            f"{', '.join(list(state_dict)[:3])}. MODEL.WEIGHTS accepts files of this project, of "
            "GLIP, and of the original Swin release (the latter for MODEL.BACKBONE.NAME "
            "build_swin_fpn_backbone)."
        )
    if mismatch := compare(weights, model_state, unknown=report.unknown, may_lack=may_lack):
        raise ValueError(mismatch.message(f"{source} ({layout.value} names)"))
    model.load_state_dict(weights, strict=False)
    losses = loss_only_prefixes(model)
    untrained = [n for n in model_state if n.startswith(optional) and n not in weights]
    if of_losses := [n for n in untrained if n.startswith(losses)]:
        # Released files omit them: only training needs them.
        logger.info(
            "%s has no weights of parts that only losses use; training initialises them:\n%s",
            source,
            "\n".join(list_names(of_losses)),
        )
    if untrained := [n for n in untrained if not n.startswith(losses)]:
        logger.warning(
            "%s has no weights of these parts, which stay at their initial values:\n%s",
            source,
            "\n".join(list_names(untrained)),
        )
    return report


def _rename(state_dict: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], LoadReport]:
    if layout is Layout.GLIP:
        return from_glip(state_dict)
    plain = strip_wrapper(state_dict)
    if layout is Layout.SWIN:
        return from_swin(plain)
    return plain, LoadReport({name: name for name in plain}, (), {}, ())
