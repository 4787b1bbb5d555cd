"""Conversions of dtypes."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 tensors are returned unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
