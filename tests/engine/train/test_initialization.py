"""Layers that are set in closed form before the first iteration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.models import tiny_model
from torch import nn

from glipv2_d2.engine.train.initialization import InitializeFromImages
from glipv2_d2.modeling import GLIPv2


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> GLIPv2:
    """A model that keeps the batches in ``received``."""
    model = tiny_model()
    monkeypatch.setattr(model, "received", [], raising=False)
    monkeypatch.setattr(model, "initialize_from", model.received.extend)
    return model


def hook(model: GLIPv2, start_iter: int) -> InitializeFromImages:
    hook = InitializeFromImages(model, num_images=5, images_per_batch=2)
    loader = ([index] for index in range(100))
    hook.trainer = SimpleNamespace(start_iter=start_iter, data_loader=loader)
    return hook


def test_the_model_receives_the_first_batches_with_enough_images(model: Any) -> None:
    hook(model, start_iter=0).before_train()
    assert model.received == [[0], [1], [2]]


def test_a_resumed_training_keeps_its_layers(model: Any) -> None:
    hook(model, start_iter=1).before_train()
    assert model.received == []


def test_a_head_without_such_layers_is_an_error_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"INITIALIZE_FROM_IMAGES must be 0: GroundingRPN"):
        tiny_model().initialize_from([])


def test_another_meta_architecture_is_an_error_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"INITIALIZE_FROM_IMAGES must be 0: Linear"):
        InitializeFromImages(nn.Linear(1, 1), 1, 1)
