"""A strict version of Detectron2's checkpointer that also loads GLIP and ImageNet Swin files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from glipv2_d2.checkpoint import foreign_files
from glipv2_d2.checkpoint.caption_start import with_caption_head
from glipv2_d2.checkpoint.file_reading import Layout, detect_layout, read_checkpoint
from glipv2_d2.checkpoint.glip_names import from_glip, is_recomputed, strip_wrapper
from glipv2_d2.checkpoint.load_report import LoadReport, Mismatch, compare, list_names
from glipv2_d2.checkpoint.swin_names import from_swin, in_imagenet_file
from glipv2_d2.file_writing import atomic_open, disk_full
from glipv2_d2.layers.checkpoint_prefixes import (
    excluded_prefixes,
    full_state_dict,
    loss_only_prefixes,
    neutral_prefixes,
    optional_prefixes,
)
from glipv2_d2.weight_files import quote, require_file

logger = logging.getLogger(__name__)

_HEURISTICS_QUERY = "matching_heuristics=True"

LAST_CHECKPOINT = "last_checkpoint"
"""The file in the output folder with the name of the checkpoint from which ``--resume`` goes on."""


class GLIPv2Checkpointer(DetectionCheckpointer):
    """Saves files atomically; loads files of this project, of GLIP, and ImageNet Swin weights.

    A drop-in replacement for Detectron2's checkpointer, which never executes code from a file. A
    mismatch with the model raises one error that lists all names, where Detectron2 only logs a
    warning. Weights of other projects are matched by Detectron2's rules instead: those with the
    suffixes ``.pkl`` and ``.pyth``, and those with ``?matching_heuristics=True`` after their path.
    Nothing in a file selects these rules.
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
        self._by_detectron2 = False
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

        Raises:
            OSError: the disk is full; the message names the checkpoint that is kept.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        basename = f"{name}.pth"
        path = os.path.join(self.save_dir, basename)
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with atomic_open(path) as file:
                torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
            self.tag_last_checkpoint(basename)
        except OSError as error:
            if disk_full(error) is None:
                raise
            raise OSError(error.errno, f"{error.strerror}. {self.what_is_kept()}") from error

    def what_is_kept(self) -> str:
        """The end of an error that ends a training: from where it can go on."""
        if not self.has_checkpoint():
            return "There is no checkpoint yet: free space and start again"
        return (
            f"The last checkpoint is '{self.get_checkpoint_file()}': free space and continue with "
            "--resume"
        )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the file from which ``--resume`` continues."""
        with atomic_open(Path(self.save_dir) / LAST_CHECKPOINT) as file:
            file.write(last_filename_basename.encode())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint in ``save_dir``; "" if there is none.

        Raises:
            ValueError: ``last_checkpoint`` names something else than a ``.pth`` file beside it.
        """
        path = Path(self.save_dir) / LAST_CHECKPOINT
        try:
            name = path.read_text(encoding="utf-8", errors="backslashreplace").strip()
        except FileNotFoundError:
            return ""
        # A query selects Detectron2's rules.
        if Path(name).name != name or not name.endswith(".pth") or "?" in name or "\0" in name:
            raise ValueError(
                f"'{path}' names {quote(name)!r}, which is not a checkpoint in its folder: write "
                "the name of a .pth file of this folder to it, or delete it to start anew"
            )
        return os.path.join(self.save_dir, name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        query = urlparse(self._source).query
        if query not in ("", _HEURISTICS_QUERY):
            raise ValueError(
                f"weights '{self._source}': the query must be {_HEURISTICS_QUERY}, not "
                f"{quote(query)!r}"
            )
        self._by_detectron2 = bool(query) or filename.endswith(foreign_files.SUFFIXES)
        if filename.endswith(foreign_files.SUFFIXES):
            checkpoint = foreign_files.read_foreign(filename)
            self.logger.info("Reading a file from '%s'", checkpoint["__author__"])
            heuristics = bool(query) or checkpoint["matching_heuristics"]
            return {**checkpoint, "matching_heuristics": heuristics}
        checkpoint = read_checkpoint(filename)
        if query:
            return {"model": checkpoint["model"], "matching_heuristics": True}
        if detect_layout(checkpoint["model"]) is Layout.NATIVE:
            return checkpoint
        # Optimizer and iteration of these files belong to another training run.
        if "model_ema" in checkpoint:
            self.logger.info("The averaged weights of the file, model_ema, are not used.")
        return {"model": checkpoint["model"]}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._by_detectron2:
            return self._load_by_detectron2(checkpoint)
        report = load_weights(self.model, checkpoint.pop("model"), source=f"'{self._source}'")
        self.logger.info(f"Keys of '{self._source}': {report}")
        optional, loaded = optional_prefixes(self.model), set(report.loaded.values())
        self.untrained = frozenset(
            name
            for name in self.model.state_dict()
            if name.startswith(optional) and name not in loaded
        )
        return None

    def _load_by_detectron2(self, checkpoint: dict[str, Any]) -> Any:
        names = list(checkpoint["model"])
        try:
            incompatible = super()._load_model(checkpoint)
        # Its rules for names index shapes and names without a check.
        except (LookupError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"'{self._source}' does not match the model by Detectron2's rules: "
                f"{quote(str(error), 200)}"
            ) from error
        lacking = {*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)}
        if lacking.issuperset(self.model.state_dict()):
            raise ValueError(_nothing_matches(f"'{self._source}'", names))
        return incompatible


def _nothing_matches(source: str, names: Sequence[str]) -> str:
    return (
        f"{source} has no weights of this model; its first names are "
        f"{', '.join(map(quote, names[:3]))}. MODEL.WEIGHTS accepts files of this project, of "
        "GLIP, and of the original Swin release (the latter for MODEL.BACKBONE.NAME "
        "build_swin_fpn_backbone), and .pkl files of Detectron2's model zoo for its models."
    )


def load_weights(model: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> LoadReport:
    """Copy weights of any layout into ``model``, cast to its dtypes.

    Optional parameters (``checkpoint_optional``) may be missing, which logs a warning unless they
    are neutral or of losses, or be in excess: a second training phase may have fewer losses than
    the first, or an additional mask head.

    Args:
        state_dict: with names of this project, of GLIP, or of the original Swin release. A Swin
            file initialises the backbone only; other parameters keep their initial values.
        source: description of the file in error messages.

    Raises:
        ValueError: names are missing, unknown or have another shape; the message lists all of
            them. The model is unchanged.
    """
    weights, report = _match(model, state_dict, source=source)
    model_state = full_state_dict(model)
    optional = optional_prefixes(model)
    model.load_state_dict(weights, strict=False)
    untrained = [n for n in model_state if n.startswith(optional) and n not in weights]
    for prefixes, consequence in (
        # Released files omit them: only training needs them.
        (loss_only_prefixes(model), "that only losses use; training initialises them"),
        (neutral_prefixes(model), "that change nothing before they are trained"),
    ):
        if of_kind := [n for n in untrained if n.startswith(prefixes)]:
            names = "\n".join(list_names(of_kind))
            logger.info("%s has no weights of parts %s:\n%s", source, consequence, names)
        untrained = [n for n in untrained if not n.startswith(prefixes)]
    if untrained:
        logger.warning(
            "%s has no weights of these parts, which stay at their initial values:\n%s",
            source,
            "\n".join(list_names(untrained)),
        )
    return report


def _require_range(
    weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor], source: str
) -> None:
    """Check that numbers of a wider type, such as float64, fit the type of the model."""
    for name, value in weights.items():
        dtype = model_state[name].dtype
        if (
            value.dtype != dtype
            and dtype.is_floating_point
            and not value.to(dtype).isfinite().all()
        ):
            raise ValueError(f"{source}: {name} ({value.dtype}) has numbers too large for {dtype}")


def convert_foreign(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Prepare a state dict that ``model.load_state_dict`` gets, in place.

    Weights with the names of GLIP or of the original Swin release get those of ``model``. Buffers
    that the model computes itself keep their values if they are missing.

    Raises:
        ValueError: weights of GLIP or Swin do not fit the model.
    """
    layout = detect_layout(state_dict)
    if layout is not Layout.NATIVE:
        weights, report = _match(model, state_dict, source="the state dict")
        logger.info("%s names: %s", layout.value, report)
        state_dict.clear()
        state_dict.update(weights)
    for name, value in full_state_dict(model).items():
        if is_recomputed(name):
            state_dict.setdefault(name, value)


def _match(
    model: nn.Module, state_dict: dict[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Weights under the model's names, and a report; arguments and errors as load_weights."""
    layout = detect_layout(state_dict)
    weights, report = _rename(state_dict, layout)
    excluded, optional = excluded_prefixes(model), optional_prefixes(model)

    def may_lack(name: str) -> bool:
        return (
            is_recomputed(name)
            or name.startswith((*excluded, *optional))
            or (layout is Layout.SWIN and not in_imagenet_file(name))
        )

    model_state = full_state_dict(model)
    weights = with_caption_head(weights, model_state)
    unused = [n for n in weights if n.startswith(optional) and n not in model_state]
    weights = {name: value for name, value in weights.items() if name not in unused}
    report = report.without(unused, "weights of parts that this config does not have")
    if weights.keys().isdisjoint(model_state):
        raise ValueError(_nothing_matches(source, list(state_dict)))
    if mismatch := compare(weights, model_state, unknown=report.unknown, may_lack=may_lack):
        message = mismatch.message(f"{source} ({layout.value} names)")
        raise ValueError(f"{message}{_heuristics_hint(mismatch, weights)}")
    _require_range(weights, model_state, source)
    return weights, report


def _heuristics_hint(mismatch: Mismatch, weights: dict[str, Tensor]) -> str:
    """How to load the part of a file that fits, where Detectron2 could."""
    num_matching = len(weights) - len(mismatch.unknown) - len(mismatch.shapes)
    if num_matching <= 0 or not mismatch.missing:
        return ""
    return (
        f" To load only the tensors that match by name and shape ({num_matching} have equal names),"
        " as Detectron2 does with other detectors' files, append ?matching_heuristics=True to "
        "MODEL.WEIGHTS."
    )


def _rename(state_dict: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], LoadReport]:
    if layout is Layout.GLIP:
        return from_glip(state_dict)
    plain = strip_wrapper(state_dict)
    if layout is Layout.SWIN:
        return from_swin(plain)
    return plain, LoadReport({name: name for name in plain}, (), {}, ())
