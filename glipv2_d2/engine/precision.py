"""Floating-point precision at inference: autocast and rounded weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import nn

from glipv2_d2.layers.deform_conv import ModulatedDeformConv
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.language import BertLanguageBackbone, ClipLanguageBackbone

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Config value -> dtype of autocast."""


def inference_precision(cfg: CfgNode) -> AbstractContextManager[object]:
    """The autocast context of ``TEST.PRECISION``.

    Raises:
        ValueError: the precision is unknown.
    """
    dtype = _inference_dtype(cfg)
    if dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def round_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Round in place the weights that autocast to ``TEST.PRECISION`` would round in every call.

    The model's outputs stay bit-identical; these weights take half the memory and are not
    converted again. For inference only: the rounding cannot be undone, and the model then only
    runs inside :func:`inference_precision`. Adapters, and models other than GLIPv2, are not
    changed.

    Raises:
        ValueError: the precision is unknown.
    """
    dtype = _inference_dtype(cfg)
    if dtype is None or not isinstance(model, GLIPv2):
        return
    for module in _autocast_modules(model, dtype):
        weight = module.weight.detach()
        # Keeps the memory format: DyConv's weights are laid out like its samples.
        module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)


def _inference_dtype(cfg: CfgNode) -> torch.dtype | None:
    name = cfg.TEST.PRECISION
    if name == "fp32":
        return None
    if name not in PRECISIONS:
        raise ValueError(f"TEST.PRECISION is {name!r}; use one of {['fp32', *PRECISIONS]}")
    return PRECISIONS[name]


def _autocast_modules(model: GLIPv2, dtype: torch.dtype) -> Iterator[Any]:
    """Modules whose weights are used only in products that autocast computes in ``dtype``."""
    parts = [model.backbone, model.fused_head]
    encoders = (BertLanguageBackbone, ClipLanguageBackbone)
    if type(model.language_backbone) in encoders and not _encodes_in_fp32(model):
        parts.append(model.language_backbone)
    # Exact types only: a subclass may use its weight in other operations.
    types: set[type[nn.Module]] = {nn.Linear, nn.Conv2d, Conv2d}
    if model.device.type == "cpu" and dtype == torch.bfloat16:
        # On other devices and in fp16 its product is computed in fp32.
        types.add(ModulatedDeformConv)
    for part in parts:
        for name, module in part.named_modules():
            if type(module) in types and "base_layer" not in name and "lora_" not in name:
                yield module


def _encodes_in_fp32(model: GLIPv2) -> bool:
    """Whether the language backbone also encodes answers or class names in full precision."""
    return model.text_tasks is not None and model.text_tasks.embeds_strings
