"""The optimizer: learning rates and weight decay of parameters, gradient clipping."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import (
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)
from torch import nn

from glipv2_d2.config import complete_config
from glipv2_d2.engine.parameter_prefixes import (
    FUSED_HEAD,
    IMAGE_BACKBONE,
    LANGUAGE_BACKBONE,
    TEXT_HEADS,
)
from glipv2_d2.gradient_clipping import CLIP_TYPES, FULL_MODEL


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over the parameters of ``model`` that are not frozen.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "value" and "norm" clip per parameter, as in Detectron2;
    "full_model" clips the norm over all gradients.

    Raises:
        ValueError: the optimizer or the type of clipping is unknown.
    """
    cfg = complete_config(cfg)
    solver = cfg.SOLVER
    groups = param_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        language_lr_factor=solver.LANGUAGE_LR_FACTOR,
        backbone_lr_factor=solver.BACKBONE_LR_FACTOR,
        fusion_lr_factor=solver.FUSION_LR_FACTOR,
        text_head_lr_factor=solver.TEXT_HEAD_LR_FACTOR,
    )
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        # Fused: one pass over the weights; torch's default on a CPU makes one per operation.
        # (Fused SGD of torch 2.15 reads uninitialised momentum when fp16 skips the first step.)
        "ADAMW": (torch.optim.AdamW, {"fused": True}),
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
    }
    if solver.OPTIMIZER not in kinds:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of {sorted(kinds)}")
    optimizer_class, options = kinds[solver.OPTIMIZER]
    optimizer_class = _with_clipping_of(cfg, optimizer_class)
    optimizer = optimizer_class(groups, lr=solver.BASE_LR, **options)  # type: ignore[call-arg]
    # A gradient scaler passes scaled gradients to fused optimizers; clipping needs unscaled ones.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    optimizer.register_load_state_dict_pre_hook(_keep_fused)
    return optimizer


def _with_clipping_of(
    cfg: CfgNode, optimizer_class: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer_class
    if clip.CLIP_TYPE not in CLIP_TYPES:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; use one of {list(CLIP_TYPES)}"
        )
    if clip.CLIP_TYPE == FULL_MODEL:
        return with_gradient_clipping(optimizer_class, clip.CLIP_VALUE, clip.NORM_TYPE)
    clipped: type[torch.optim.Optimizer] = maybe_add_gradient_clipping(cfg, optimizer_class)
    return clipped


def _keep_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Override ``fused`` in the state of a checkpoint, which may predate the fused optimizer."""
    fused = optimizer.defaults["fused"]
    return state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]}


def param_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
    language_lr_factor: float,
    backbone_lr_factor: float,
    fusion_lr_factor: float = 1.0,
    text_head_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups by GLIP's rule (glip_reference.md 17), without frozen parameters.

    A parameter is a bias if the last part of its name contains "bias": also
    ``relative_position_bias_table`` and ``bias_language``. The fused head's language layers are
    not part of the language backbone. The factors multiply ``base_lr``; those of a bias also
    ``bias_lr_factor``.

    Args:
        weight_decay_norm, weight_decay_bias: None: the value of ``weight_decay``.
        language_lr_factor: of the language backbone.
        backbone_lr_factor: of the image backbone below its FPN.
        fusion_lr_factor: of the fused head.
        text_head_lr_factor: of the answer and caption heads.
    """
    factor_of = {
        LANGUAGE_BACKBONE: language_lr_factor,
        IMAGE_BACKBONE: backbone_lr_factor,
        FUSED_HEAD: fusion_lr_factor,
        **dict.fromkeys(TEXT_HEADS, text_head_lr_factor),
    }

    def lr_factor(name: str) -> float:
        factor = bias_lr_factor if "bias" in name.rpartition(".")[2] else 1.0
        for prefix, factor_of_part in factor_of.items():
            if name.startswith(prefix):
                factor *= factor_of_part
        return factor

    own_names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    overrides: dict[str, dict[str, float]] = {}
    if weight_decay_bias is not None:
        biases = (name for name in own_names if "bias" in name)
        overrides = {name: {"weight_decay": weight_decay_bias} for name in biases}
    return get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=lr_factor,
        overrides=overrides,
    )


def with_gradient_clipping(
    optimizer_class: type[torch.optim.Optimizer], max_norm: float, norm_type: float
) -> type[torch.optim.Optimizer]:
    """Subclass an optimizer to clip the norm over all gradients before each step.

    ``step`` raises FloatingPointError before a non-finite gradient changes the weights. With
    float16 the gradient scaler skips such a step and does not call it.
    """

    class ClippedOptimizer(optimizer_class):  # type: ignore[misc, valid-type]
        def step(self, closure: Any = None) -> Any:
            params = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
            norm = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient's norm is {norm.item()}")
            return super().step(closure)

    ClippedOptimizer.__name__ = f"Clipped{optimizer_class.__name__}"
    return ClippedOptimizer
