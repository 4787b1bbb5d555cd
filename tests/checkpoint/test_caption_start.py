"""The caption head starts from the head that predicted masked words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import tiny_model
from helpers.text_tasks import CAPTIONING

from glipv2_d2.checkpoint import load_weights

OWN = ("MODEL.CAPTION.DECODER", "own")
MLM = ("MODEL.MLM.WEIGHT", 1.0)
KEPT = ("MODEL.MLM.KEEP_HEAD", True)


def pretrained(*opts: Any) -> dict[str, torch.Tensor]:
    """The state of a pre-training, whose head differs from the initial weights."""
    model = tiny_model(*opts)
    for parameter in model.loss_heads["masked_language"].parameters():
        torch.nn.init.normal_(parameter)
    return model.state_dict()


@pytest.mark.parametrize("phase", [MLM, KEPT], ids=["trained", "kept"])
def test_a_caption_head_of_the_same_form_has_the_weights_of_the_masked_language_head(
    phase: tuple[Any, ...],
) -> None:
    state = pretrained(*phase)
    model = tiny_model(*CAPTIONING, *OWN)
    load_weights(model, state, source="file")
    for name, value in model.text_tasks.caption.state_dict().items():
        assert torch.equal(value, state[f"loss_heads.masked_language.{name}"]), name


def test_a_tied_decoder_keeps_its_own_start() -> None:
    model = tiny_model(*CAPTIONING)
    before = {k: v.clone() for k, v in model.text_tasks.caption.state_dict().items()}
    load_weights(model, pretrained(*MLM), source="file")
    for name, value in model.text_tasks.caption.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_caption_head_of_a_file_is_loaded_as_it_is() -> None:
    state = pretrained(*MLM, *CAPTIONING, *OWN)
    model = tiny_model(*CAPTIONING, *OWN)
    load_weights(model, state, source="file")
    for name, value in model.text_tasks.caption.state_dict().items():
        assert torch.equal(value, state[f"text_tasks.caption.{name}"]), name


def test_a_file_without_either_head_leaves_the_initial_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    load_weights(tiny_model(*CAPTIONING, *OWN), tiny_model().state_dict(), source="file")
    assert "text_tasks.caption" in caplog.text
