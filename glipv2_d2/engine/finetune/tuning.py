"""Fine-tuned models: a base, a policy and a *delta*, the tensors that differ from the base.

A delta file is ``{"model": name -> tensor, "tuning": {settings, base, fingerprint}}``. The names
are those of the model after the policy is applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from glipv2_d2.checkpoint import GLIPv2Checkpointer, read_checkpoint
from glipv2_d2.checkpoint.load_report import compare
from glipv2_d2.dataset_classes import class_names_of
from glipv2_d2.engine.finetune.policies import apply_policy
from glipv2_d2.file_writing import atomic_open
from glipv2_d2.layers.checkpoint_prefixes import full_state_dict, loss_only_prefixes
from glipv2_d2.model_folder import DELTA_FILE

# Keys of MODEL.TUNING that describe a model, not a policy.
_NOT_OF_THE_POLICY = ("DELTA", "BASE", "CLASS_NAMES", "RECIPE")


@dataclass(frozen=True)
class Tuning:
    """The base of a fine-tuned model, which :func:`save_delta` compares with.

    Attributes:
        settings: of the policy, those of ``MODEL.TUNING``, as plain values.
        base: the base's weights, a path as given in ``MODEL.WEIGHTS``.
        digests: name -> hash of each tensor that was loaded from the base.
        fingerprint: hash of the base.
    """

    settings: dict[str, Any]
    base: str
    digests: dict[str, str]
    fingerprint: str


@dataclass(frozen=True)
class Delta:
    """The contents of a delta file.

    Attributes:
        tensors: name -> value.
        settings, base, fingerprint: see :class:`Tuning`.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    base: str
    fingerprint: str


def apply_tuning(cfg: CfgNode, model: nn.Module) -> Tuning | None:
    """Apply the policy and delta of ``MODEL.TUNING`` to a new model, in place.

    Without ``MODEL.TUNING.NAME`` and ``DELTA`` no weights are loaded. Otherwise the weights of
    ``MODEL.WEIGHTS`` are loaded, then those of the delta. The settings in a delta replace those of
    the config.

    Returns:
        The base of the model; None without policy and delta.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no base is set, or the delta was made for another base or policy.
    """
    if not (cfg.MODEL.TUNING.NAME or cfg.MODEL.TUNING.DELTA):
        return None
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty: fine-tuning (MODEL.TUNING) needs the weights of a base"
        )
    cfg = _with_prompt_names(cfg)
    checkpointer = GLIPv2Checkpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    # Modules that the base lacks, such as mask heads, belong to the delta.
    state = {n: v for n, v in _inference_state(model).items() if n not in checkpointer.untrained}
    digest_of = {name: _digest(value) for name, value in state.items()}
    fingerprint = _fingerprint(digest_of)
    source, delta = cfg.MODEL.TUNING.DELTA, None
    if source:
        delta = read_delta(source)
        _check_base(cfg, delta, fingerprint)
        cfg = _with_settings(cfg, delta.settings)

    # Wrapping a module changes names; the tensors of the base keep their memory.
    digest_at = {state[name].data_ptr(): digest for name, digest in digest_of.items()}
    apply_policy(cfg, model)
    digests = {
        name: digest_at[value.data_ptr()]
        for name, value in _inference_state(model).items()
        if value.data_ptr() in digest_at
    }
    if delta is not None:
        _load_tensors(model, delta, digests, source)
    return Tuning(_settings(cfg), cfg.MODEL.WEIGHTS, digests, fingerprint)


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config with the weights of ``MODEL.WEIGHTS`` and ``MODEL.TUNING``."""
    model = build_model(cfg)
    tuning = apply_tuning(cfg, model)
    resume_or_load(GLIPv2Checkpointer(model), cfg, tuning, resume=False)
    return model


def resume_or_load(
    checkpointer: GLIPv2Checkpointer, cfg: CfgNode, tuning: Tuning | None, *, resume: bool
) -> None:
    """Load the last checkpoint, or ``MODEL.WEIGHTS`` unless the model already has them.

    Args:
        tuning: the result of :func:`apply_tuning` on the model.
    """
    checkpointer.resume_or_load("" if tuning is not None else cfg.MODEL.WEIGHTS, resume=resume)


def save_delta(model: nn.Module, tuning: Tuning, path: str | Path) -> None:
    """Atomically write the tensors that differ from the base.

    Weights that only losses use are excluded: a delta is for inference.

    Args:
        tuning: the result of :func:`apply_tuning` on the model.

    Raises:
        ValueError: no tensor differs.
    """
    tensors = {
        # A copy, because saving a view would save all memory behind it.
        name: value.detach().to("cpu", copy=True)
        for name, value in _inference_state(model).items()
        if tuning.digests.get(name) != _digest(value)
    }
    if not tensors:
        raise ValueError(
            f"no tensor differs from the base '{tuning.base}': nothing to write to '{path}'"
        )
    about = {"settings": tuning.settings, "base": tuning.base, "fingerprint": tuning.fingerprint}
    with atomic_open(path) as file:
        torch.save({"model": tensors, "tuning": about}, file)


def read_delta(path: str | Path) -> Delta:
    """Read a file of :func:`save_delta`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a delta.
    """
    content = read_checkpoint(path, key="MODEL.TUNING.DELTA")
    about = content.get("tuning")
    types = {"settings": dict, "base": str, "fingerprint": str}
    if not isinstance(about, dict) or {k: type(v) for k, v in about.items()} != types:
        raise ValueError(
            f"'{path}' is not a delta of a fine-tuned model; set MODEL.TUNING.DELTA to the "
            f"{DELTA_FILE} of a training with MODEL.TUNING.NAME, and MODEL.WEIGHTS to full weights"
        )
    return Delta(content["model"], **about)


def _check_base(cfg: CfgNode, delta: Delta, fingerprint: str) -> None:
    source, policy = cfg.MODEL.TUNING.DELTA, cfg.MODEL.TUNING.NAME
    if delta.fingerprint != fingerprint:
        raise ValueError(
            f"delta '{source}' was made for other weights: for '{delta.base}' (fingerprint "
            f"{delta.fingerprint}), but MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}' (fingerprint "
            f"{fingerprint}). Use the weights and the config that it was made with"
        )
    made_with = delta.settings.get("NAME")
    if policy and policy != made_with:
        raise ValueError(
            f"delta '{source}' was made with the policy {made_with!r}, but MODEL.TUNING.NAME is "
            f"{policy!r}: clear MODEL.TUNING.NAME, or clear MODEL.TUNING.DELTA to start anew"
        )


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """``MODEL.TUNING`` as plain values, which torch loads with ``weights_only``."""
    settings = yaml.safe_load(cfg.MODEL.TUNING.dump())
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_POLICY}


def _with_prompt_names(cfg: CfgNode) -> CfgNode:
    """The config with the names of the policy ``class_prompt``, those of the training sets."""
    tuning = cfg.MODEL.TUNING
    if tuning.NAME != "class_prompt" or tuning.PROMPT.CLASS_NAMES or tuning.DELTA:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    names = [name for dataset in cfg.DATASETS.TRAIN for name in class_names_of(dataset)]
    cfg.MODEL.TUNING.PROMPT.CLASS_NAMES = list(dict.fromkeys(names))
    cfg.freeze()
    return cfg


def _with_settings(cfg: CfgNode, settings: dict[str, Any]) -> CfgNode:
    """The config with the policy and settings of a delta."""
    cfg = cfg.clone()
    cfg.defrost()
    try:
        cfg.MODEL.TUNING.merge_from_other_cfg(CfgNode(settings))
    # yacs checks names with the first, types with the others.
    except (KeyError, ValueError, AssertionError) as error:
        source = cfg.MODEL.TUNING.DELTA
        raise ValueError(f"delta '{source}' has settings that do not exist: {error}") from error
    cfg.freeze()
    return cfg


def _load_tensors(model: nn.Module, delta: Delta, digests: Mapping[str, str], source: str) -> None:
    def is_from_base(name: str) -> bool:
        return name in digests

    mismatch = compare(delta.tensors, _inference_state(model), may_lack=is_from_base)
    if mismatch:
        raise ValueError(mismatch.message(f"delta '{source}'"))
    model.load_state_dict(delta.tensors, strict=False)


def _inference_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without weights that only losses use."""
    excluded = loss_only_prefixes(model)
    state = full_state_dict(model)
    return {name: value for name, value in state.items() if not name.startswith(excluded)}


def _digest(value: Tensor) -> str:
    """Hash of a tensor's shape, dtype and values."""
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    about = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.blake2b(about + raw.tobytes(), digest_size=16).hexdigest()


def _fingerprint(digest_of: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digest_of.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
