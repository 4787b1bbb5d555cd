"""The exponential moving average of weights."""

from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_model
from torch import nn

from glipv2_d2.engine.train.ema import ExponentialMovingAverage


def test_weights_and_float_buffers_are_averaged_and_integers_copied() -> None:
    model = nn.BatchNorm1d(1)
    average = ExponentialMovingAverage(model, 0.75)
    average.start()
    with torch.no_grad():
        model.weight.fill_(5.0)  # was 1
        model.running_mean.fill_(8.0)  # was 0
        model.num_batches_tracked.fill_(3)  # was 0
    average.update()
    state = average.state_dict()
    assert state["weight"].item() == 0.75 * 1 + 0.25 * 5
    assert state["running_mean"].item() == 0.25 * 8
    assert state["num_batches_tracked"].item() == 3


def test_frozen_weights_are_excluded() -> None:
    model = nn.Linear(1, 1)
    model.weight.requires_grad_(False)
    average = ExponentialMovingAverage(model, 0.5)
    average.start()
    assert set(average.state_dict()) == {"bias"}


def test_a_frozen_language_backbone_is_excluded() -> None:
    average = ExponentialMovingAverage(tiny_model("MODEL.LANGUAGE_BACKBONE.FREEZE", True), 0.5)
    average.start()
    names = average.state_dict()
    assert any(name.startswith("fused_head.") for name in names)
    assert not any(name.startswith("language_backbone.") for name in names)


def test_start_keeps_a_loaded_average() -> None:
    model = nn.Linear(1, 1)
    average = ExponentialMovingAverage(model, 0.5)
    average.load_state_dict({"weight": torch.tensor([[7.0]]), "bias": torch.tensor([8.0])})
    average.start()
    assert average.state_dict()["weight"].item() == 7


def test_the_average_of_another_model_is_an_error() -> None:
    average = ExponentialMovingAverage(nn.Linear(1, 1), 0.5)
    with pytest.raises(ValueError, match=r"model_ema.*scale"):
        average.load_state_dict({"scale": torch.ones(1)})


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_zero_and_one_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=str(decay)):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
