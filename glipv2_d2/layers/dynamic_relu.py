"""Dynamic ReLU: a piecewise linear activation with slopes computed from the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def map_mean(x: Tensor) -> Tensor:
    """Average each map, (N, C, H, W) -> (N, C).

    On a CPU torch's ``mean`` first converts whole bf16 maps to fp32. Its ``sum`` also accumulates
    in fp32, but without this copy.
    """
    if x.dtype == torch.bfloat16:
        return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
    return x.mean(dim=(2, 3))


class DynamicReLU(nn.Module):
    """Computes max(a1 x + b1, a2 x + b2) per channel, with (a, b) from the average of the map.

    Source: DyReLU-B without spatial term, as in the released GLIP (glip_reference.md 9.6).
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        hidden = F.relu(self.squeeze(map_mean(x)))
        coefficients = F.hardsigmoid(self.excite(hidden)) - 0.5  # (N, 4 C), in -0.5 .. 0.5
        a1, b1, a2, b2 = coefficients[:, :, None, None].chunk(4, dim=1)
        # Fused: a separate product and sum would each pass over the map.
        return torch.maximum(torch.addcmul(b1, x, 2 * a1 + 1), torch.addcmul(b2, x, 2 * a2))
