"""The optimizer: which parameter learns how fast, and how gradients are clipped."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

LANGUAGE_BACKBONE = "language_backbone."
IMAGE_BACKBONE = "backbone.bottom_up."
FUSED_HEAD = "fused_head."
TEXT_HEADS = ("answer.", "caption.", "region_reader.")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` over the parameters of ``model`` that are not frozen.

    Raises:
        ValueError: an optimizer or a kind of clipping that does not exist.
    """
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
        # Fused: one pass over the weights, where torch's choice on a CPU makes one per operation.
        # (SGD's, as of torch 2.15, starts from momentum that nobody wrote where the first step of
        # fp16 is left out.)
        "ADAMW": (torch.optim.AdamW, {"fused": True}),
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
    }
    if solver.OPTIMIZER not in kinds:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of {sorted(kinds)}")
    optimizer_class, options = kinds[solver.OPTIMIZER]
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        if clip.CLIP_TYPE != "full_model":
            raise ValueError(
                f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; use 'full_model'"
            )
        optimizer_class = with_gradient_clipping(optimizer_class, clip.CLIP_VALUE, clip.NORM_TYPE)
    optimizer = optimizer_class(groups, lr=solver.BASE_LR, **options)  # type: ignore[call-arg]
    # A gradient scaler hands fused optimizers gradients that are scaled still: no norm could be
    # told from them.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    optimizer.register_load_state_dict_pre_hook(_stay_fused)
    return optimizer


def _stay_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, which may be older than the choice of a fused optimizer."""
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
    """GLIP's rule (GLIP spec 17) for the parameters that are not frozen.

    A parameter whose own name has "bias" in it is a bias: also ``relative_position_bias_table``
    and ``bias_language``. The head's language layers are not the language backbone.

    Args:
        weight_decay_norm, weight_decay_bias: None for ``weight_decay``.
        language_lr_factor: of the language backbone, on top of ``bias_lr_factor`` for its biases.
        backbone_lr_factor: of the image backbone below its FPN, likewise.
        fusion_lr_factor: of the fused head, likewise.
        text_head_lr_factor: of the heads for answers and captions, likewise.
    """
    factor_of = {
        LANGUAGE_BACKBONE: language_lr_factor,
        IMAGE_BACKBONE: backbone_lr_factor,
        FUSED_HEAD: fusion_lr_factor,
        **dict.fromkeys(TEXT_HEADS, text_head_lr_factor),
    }

    def lr_factor(name: str) -> float:
        factor = bias_lr_factor if "bias" in name.rpartition(".")[2] else 1.0
        for beginning, factor_of_part in factor_of.items():
            if name.startswith(beginning):
                factor *= factor_of_part
        return factor

    own_names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    bias_decay = weight_decay if weight_decay_bias is None else weight_decay_bias
    return get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=lr_factor,
        overrides={name: {"weight_decay": bias_decay} for name in own_names if "bias" in name},
    )


def with_gradient_clipping(
    optimizer_class: type[torch.optim.Optimizer], max_norm: float, norm_type: float
) -> type[torch.optim.Optimizer]:
    """The optimizer, with the norm of all gradients together limited before each step.

    Its ``step`` raises FloatingPointError before a gradient that is not finite reaches the
    weights. Under AMP it is not reached then: the gradient scaler leaves the step out.
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
