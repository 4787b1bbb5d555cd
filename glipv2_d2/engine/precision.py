"""The number formats that a config may ask for."""

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
from glipv2_d2.modeling.language.bert import BertLanguageBackbone

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def inference_precision(cfg: CfgNode) -> AbstractContextManager[object]:
    """The context in which a model of ``TEST.PRECISION`` is asked.

    Raises:
        ValueError: there is no such precision.
    """
    dtype = _inference_dtype(cfg)
    if dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def round_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Round the weights that autocast to ``TEST.PRECISION`` would round in every run; in place.

    What the model says stays the same to the last bit, with half the memory for these weights and
    without the time to convert them. For models that are only asked: what is lost does not come
    back, and outside of :func:`inference_precision` the model cannot be called any more. Other
    models than GLIPv2, and adapters, stay as they are.

    Raises:
        ValueError: there is no such precision.
    """
    dtype = _inference_dtype(cfg)
    if dtype is None or not isinstance(model, GLIPv2):
        return
    for module in _rounded_in_use(model, dtype):
        weight = module.weight.detach()
        # Kept in the order of its memory: DyConv's weights lie as its samples come.
        module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)


def _inference_dtype(cfg: CfgNode) -> torch.dtype | None:
    name = cfg.TEST.PRECISION
    if name == "fp32":
        return None
    if name not in PRECISIONS:
        raise ValueError(f"TEST.PRECISION is {name!r}; use one of {['fp32', *PRECISIONS]}")
    return PRECISIONS[name]


def _rounded_in_use(model: GLIPv2, dtype: torch.dtype) -> Iterator[Any]:
    """Modules whose weights are only factors of products that autocast computes in ``dtype``."""
    parts = [model.backbone, model.fused_head]
    # Answers and names are read by the language backbone in full precision.
    reads_precisely = model.answer is not None or model.region_reader is not None
    if type(model.language_backbone) is BertLanguageBackbone and not reads_precisely:
        parts.append(model.language_backbone)
    # No classes of their own: these may do more with a weight than to multiply.
    types: set[type[nn.Module]] = {nn.Linear, nn.Conv2d, Conv2d}
    if model.device.type == "cpu" and dtype == torch.bfloat16:
        # Elsewhere its product is in fp32.
        types.add(ModulatedDeformConv)
    for part in parts:
        for name, module in part.named_modules():
            if type(module) in types and "base_layer" not in name and "lora_" not in name:
                yield module
