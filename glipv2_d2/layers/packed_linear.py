"""Linear layers on CPUs by oneDNN, with weights in the memory layout of its products.

torch computes products of fp32 with MKL, and those of bf16 with oneDNN, which rearranges the
weights in every call. With weights that are packed once for several blocks of rows, and with the
bias and GELU applied on the way, oneDNN takes up to a fifth less time (docs/performance.md). Each
call of a layer packs its weights anew, so no packed copy can be stale.

oneDNN keeps a megabyte or more per shape for the life of the process. Blocks of one fixed size are
therefore multiplied by packed weights, and all others by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.tracing import is_tracing

# With fewer rows, packing the weights takes longer than it saves.
MIN_ROWS = 512


def prepared_linear(
    weight: Tensor, bias: Tensor | None, *, num_rows: int, block_rows: int, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """F.linear with given weights, optionally followed by GELU, prepared for several inputs.

    Args:
        weight: (O, I).
        bias: (O,).
        num_rows: of all inputs together.
        block_rows: of an input that packed weights are for; of few values in a process.

    Returns:
        Maps (..., I) to (..., O). Without gradients, on a CPU with oneDNN, it multiplies inputs of
        exactly ``block_rows`` rows by packed weights.
    """
    plain = partial(_plain_linear, weight=weight, bias=bias, gelu=gelu)
    dtype = _product_dtype(weight)
    if not _can_pack(weight, dtype) or block_rows < MIN_ROWS or num_rows < block_rows:
        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), block_rows)
    bias = None if bias is None else bias.to(dtype)
    multiply = partial(_packed_linear, weight=packed, bias=bias, dtype=dtype, gelu=gelu)
    return lambda x: (multiply if x[..., 0].numel() == block_rows else plain)(x)


def prepared_module(
    module: nn.Module, *, num_rows: int, block_rows: int, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """:func:`prepared_linear` of a linear layer; other modules, such as adapters, unchanged."""
    is_changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if type(module) is nn.Linear and not is_changed:
        return prepared_linear(
            module.weight, module.bias, num_rows=num_rows, block_rows=block_rows, gelu=gelu
        )
    return (lambda x: F.gelu(module(x))) if gelu else module


def _product_dtype(weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu") and weight.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return weight.dtype


def _can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    if (
        weight.device.type != "cpu"
        or weight.numel() == 0
        or dtype not in (torch.float32, torch.bfloat16)
    ):
        return False
    if torch.is_grad_enabled() or is_tracing() or torch.compiler.is_compiling():
        return False
    onednn: Any = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)):
        return False
    if not hasattr(onednn, "_linear_pointwise"):
        return False
    return dtype is torch.float32 or bool(onednn._is_mkldnn_bf16_supported())


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool
) -> Tensor:
    activation, algorithm = ("gelu", "none") if gelu else ("none", "")  # by erf
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, activation, [], algorithm)
