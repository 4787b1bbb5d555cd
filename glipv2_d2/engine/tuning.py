"""Fine-tuned models: a base, a policy, and a *delta*, the few tensors that differ from the base.

A delta file is ``{"model": name -> tensor, "tuning": {settings, base, fingerprint}}``. Its names
are those of the model after the policy has been applied.
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

from glipv2_d2.checkpoint import GLIPv2Checkpointer, atomic_open, read_checkpoint
from glipv2_d2.checkpoint.account import compare
from glipv2_d2.checkpoint.writing import loss_prefixes
from glipv2_d2.engine.policies import apply_policy

DELTA_FILE = "delta.pth"
"""What a training with a policy calls its delta, in OUTPUT_DIR."""


@dataclass(frozen=True)
class Tuning:
    """What a model remembers of its base; it is the model's attribute ``tuning``.

    Attributes:
        settings: ``MODEL.TUNING`` as plain values, without ``DELTA``.
        base: the file of the base's weights, as its user named it.
        digests: of each tensor that came from the base, its value there.
        fingerprint: of the base.
    """

    settings: dict[str, Any]
    base: str
    digests: dict[str, str]
    fingerprint: str


@dataclass(frozen=True)
class Delta:
    """The content of a delta file.

    Attributes:
        tensors: name -> value.
        settings, base, fingerprint: as of :class:`Tuning`.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    base: str
    fingerprint: str


def build_tuned_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, for ``MODEL.TUNING`` with its base, policy and delta.

    Without ``MODEL.TUNING.NAME`` and ``DELTA`` it is built and nothing is loaded. Else it has the
    weights of ``MODEL.WEIGHTS`` and of the delta. The policy's settings are those of the delta,
    where there is one.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: there is no base, or the delta was made for another base or policy.
    """
    model = build_model(cfg)
    if not (cfg.MODEL.TUNING.NAME or cfg.MODEL.TUNING.DELTA):
        return model
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty: fine-tuning (MODEL.TUNING) starts from the weights of a base"
        )
    checkpointer = GLIPv2Checkpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    # What the base lacks, such as masks, is the delta's to bring.
    state = {n: v for n, v in _state_of_inference(model).items() if n not in checkpointer.untrained}
    digest_of = {name: _digest(value) for name, value in state.items()}
    fingerprint = _fingerprint(digest_of)
    source, delta = cfg.MODEL.TUNING.DELTA, None
    if source:
        delta = read_delta(source)
        _check_base(cfg, delta, fingerprint)
        cfg = _with_settings(cfg, delta.settings)

    # Names change where parts are wrapped, but the tensors of the base stay where they are.
    digest_at = {state[name].data_ptr(): digest for name, digest in digest_of.items()}
    apply_policy(cfg, model)
    digests = {
        name: digest_at[value.data_ptr()]
        for name, value in _state_of_inference(model).items()
        if value.data_ptr() in digest_at
    }
    model.tuning = Tuning(_settings(cfg), cfg.MODEL.WEIGHTS, digests, fingerprint)
    if delta is not None:
        _load_tensors(model, delta, digests, source)
    return model


def load_model(cfg: CfgNode) -> nn.Module:
    """:func:`build_tuned_model`, with ``MODEL.WEIGHTS`` also where nothing is fine-tuned."""
    model = build_tuned_model(cfg)
    resume_or_load(GLIPv2Checkpointer(model), cfg, resume=False)
    return model


def resume_or_load(checkpointer: GLIPv2Checkpointer, cfg: CfgNode, *, resume: bool) -> None:
    """Load the last checkpoint, or else ``MODEL.WEIGHTS`` unless the model came with them.

    Args:
        checkpointer: of a model of :func:`build_tuned_model`.
    """
    has_base = hasattr(checkpointer.model, "tuning")
    checkpointer.resume_or_load("" if has_base else cfg.MODEL.WEIGHTS, resume=resume)


def save_delta(model: nn.Module, path: str | Path) -> None:
    """Write what differs from the base, whole or not at all.

    Weights that only losses read are left out: a delta is for those who ask the model.

    Args:
        model: of :func:`build_tuned_model`, with a policy.

    Raises:
        ValueError: nothing differs.
    """
    tuning: Tuning = model.tuning  # type: ignore[assignment]
    tensors = {
        # A copy of its own, lest a view takes all the memory behind it along.
        name: value.detach().to("cpu", copy=True)
        for name, value in _state_of_inference(model).items()
        if tuning.digests.get(name) != _digest(value)
    }
    if not tensors:
        raise ValueError(
            f"nothing differs from the base '{tuning.base}': there is no delta to write to '{path}'"
        )
    about = {"settings": tuning.settings, "base": tuning.base, "fingerprint": tuning.fingerprint}
    with atomic_open(path) as file:
        torch.save({"model": tensors, "tuning": about}, file)


def read_delta(path: str | Path) -> Delta:
    """Read a file of :func:`save_delta`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no delta.
    """
    content = read_checkpoint(path)
    about = content.get("tuning")
    keys = {"settings", "base", "fingerprint"}
    if not isinstance(about, dict) or about.keys() != keys:
        raise ValueError(
            f"'{path}' is no delta of a fine-tuned model; MODEL.TUNING.DELTA takes the "
            f"{DELTA_FILE} that a training with MODEL.TUNING.NAME writes, and whole weights go to "
            "MODEL.WEIGHTS"
        )
    return Delta(content["model"], **about)


def _check_base(cfg: CfgNode, delta: Delta, fingerprint: str) -> None:
    source, asked = cfg.MODEL.TUNING.DELTA, cfg.MODEL.TUNING.NAME
    if delta.fingerprint != fingerprint:
        raise ValueError(
            f"delta '{source}' was made for other weights: for '{delta.base}' (fingerprint "
            f"{delta.fingerprint}), while MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' gives this model "
            f"{fingerprint}. Use the weights and the config that it was made with"
        )
    made_with = delta.settings.get("NAME")
    if asked and asked != made_with:
        raise ValueError(
            f"delta '{source}' was made with the policy {made_with!r}, but MODEL.TUNING.NAME is "
            f"{asked!r}: leave that empty, or leave MODEL.TUNING.DELTA empty to start anew"
        )


def _settings(cfg: CfgNode) -> dict[str, Any]:
    """``MODEL.TUNING`` as plain values, which a file can hold that runs no code."""
    settings = yaml.safe_load(cfg.MODEL.TUNING.dump())
    del settings["DELTA"]
    return settings


def _with_settings(cfg: CfgNode, settings: dict[str, Any]) -> CfgNode:
    """The config with the policy and settings of a delta."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TUNING.merge_from_other_cfg(CfgNode(settings))
    cfg.freeze()
    return cfg


def _load_tensors(model: nn.Module, delta: Delta, digests: Mapping[str, str], source: str) -> None:
    def comes_from_base(name: str) -> bool:
        return name in digests

    fits = compare(delta.tensors, _state_of_inference(model), may_lack=comes_from_base)
    if fits:
        raise ValueError(fits.message(f"delta '{source}'"))
    model.load_state_dict(delta.tensors, strict=False)


def _state_of_inference(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what only losses read."""
    of_losses = loss_prefixes(model)
    return {
        name: value for name, value in model.state_dict().items() if not name.startswith(of_losses)
    }


def _digest(value: Tensor) -> str:
    """A short text that tells a tensor's shape, type and values from all others."""
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    about = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.blake2b(about + raw.tobytes(), digest_size=16).hexdigest()


def _fingerprint(digest_of: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digest_of.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
