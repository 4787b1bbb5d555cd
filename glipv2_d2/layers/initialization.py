"""Initialization of weights."""

from __future__ import annotations

from torch import nn

PREDICTION_STD = 0.01


def init_prediction(conv: nn.Conv2d) -> None:
    """Small normal weights and zero bias, so that the initial outputs are close to zero."""
    nn.init.normal_(conv.weight, std=PREDICTION_STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
