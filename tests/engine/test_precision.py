from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import random_image, tiny_cfg, tiny_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.precision import inference_precision, round_weights
from glipv2_d2.engine.tuning import build_tuned_model
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import fields

ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0)
READERS = {
    "detector": (),
    "answers": ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no", "a cat"]),
    "descriptions": ("MODEL.CAPTION.WEIGHT", 1.0),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)], ids=["fp32", "bf16"]
)
def test_products_run_in_the_precision_of_the_config(name: str, dtype: torch.dtype) -> None:
    with inference_precision(tiny_cfg("TEST.PRECISION", name)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.parametrize("ask", [inference_precision, lambda cfg: round_weights(nn.ReLU(), cfg)])
def test_an_unknown_precision_is_refused(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"TEST.PRECISION is 'int8'.*'bf16'"):
        ask(tiny_cfg("TEST.PRECISION", "int8"))


def say(model: GLIPv2, cfg: Any, **asked: Any) -> dict[str, Any]:
    with torch.no_grad(), inference_precision(cfg):
        return model([{"image": random_image(), **asked}])[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("opts", READERS.values(), ids=READERS)
def test_a_model_with_rounded_weights_finds_the_same_to_the_last_bit(
    opts: tuple, precision: str
) -> None:
    cfg = tiny_cfg("TEST.PRECISION", precision)
    model = tiny_model(*ALL, *opts)
    expected = say(model, cfg, classes=["cat", "dog"])["instances"]
    round_weights(model, cfg)
    found = say(model, cfg, classes=["cat", "dog"])["instances"]
    assert len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("reader", "asked", "field"),
    [
        ("answers", {fields.QUESTION: "what is this?"}, fields.ANSWER_SCORE),
        ("descriptions", {fields.DESCRIBE: True}, fields.CAPTION),
    ],
)
def test_what_is_said_with_rounded_weights_is_the_same(
    reader: str, asked: dict[str, Any], field: str
) -> None:
    cfg = tiny_cfg("TEST.PRECISION", "bf16")
    model = tiny_model(*READERS[reader])
    expected = say(model, cfg, **asked)
    round_weights(model, cfg)
    assert field in expected
    assert say(model, cfg, **asked) == expected


def types_of(module: nn.Module) -> set[torch.dtype]:
    return {m.weight.dtype for m in module.modules() if isinstance(m, nn.Linear)}


def test_what_is_read_in_full_precision_is_not_rounded() -> None:
    cfg = tiny_cfg("TEST.PRECISION", "bf16")
    detector, answering = tiny_model(), tiny_model(*READERS["answers"])
    for model in (detector, answering):
        round_weights(model, cfg)
        assert types_of(model.backbone) == types_of(model.fused_head) == {torch.bfloat16}
    assert types_of(detector.language_backbone) == {torch.bfloat16}
    assert types_of(answering.language_backbone) == {torch.float32}


def test_adapters_and_what_they_adapt_are_not_rounded(tmp_path: Path) -> None:
    save_weights(tiny_model(), tmp_path / "base.pth")
    places = ("MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.TUNING.NAME", "lora")
    cfg = tiny_cfg("TEST.PRECISION", "bf16", *places)
    model = build_tuned_model(cfg)
    round_weights(model, cfg)
    adapters = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    assert adapters
    assert all(types_of(adapter) == {torch.float32} for adapter in adapters)
    assert torch.bfloat16 in types_of(model.fused_head)


def test_full_precision_rounds_nothing() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_weights(model, tiny_cfg())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
