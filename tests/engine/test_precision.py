from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.tuning import build_tuned_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.precision import inference_precision, round_weights
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import fields

ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0)
MODELS = {
    "detector": (),
    "answers": ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no", "a cat"]),
    "captions": ("MODEL.CAPTION.WEIGHT", 1.0),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)], ids=["fp32", "bf16"]
)
def test_products_are_computed_in_the_precision_of_the_config(
    name: str, dtype: torch.dtype
) -> None:
    with inference_precision(tiny_cfg("TEST.PRECISION", name)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.parametrize("call", [inference_precision, lambda cfg: round_weights(nn.ReLU(), cfg)])
def test_an_unknown_precision_is_an_error(call: Any) -> None:
    with pytest.raises(ValueError, match=r"TEST.PRECISION is 'int8'.*'bf16'"):
        call(tiny_cfg("TEST.PRECISION", "int8"))


def predict(model: GLIPv2, cfg: Any, **inputs: Any) -> dict[str, Any]:
    with torch.no_grad(), inference_precision(cfg):
        return model([{"image": random_image(), **inputs}])[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("opts", MODELS.values(), ids=MODELS)
def test_detections_with_rounded_weights_are_bit_identical(opts: tuple, precision: str) -> None:
    cfg = tiny_cfg("TEST.PRECISION", precision)
    model = tiny_model(*ALL, *opts)
    expected = predict(model, cfg, classes=["cat", "dog"])["instances"]
    round_weights(model, cfg)
    found = predict(model, cfg, classes=["cat", "dog"])["instances"]
    assert len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("name", "inputs", "field"),
    [
        ("answers", {fields.QUESTION: "what is this?"}, fields.ANSWER_SCORE),
        ("captions", {fields.DESCRIBE: True}, fields.CAPTION),
    ],
)
def test_answers_and_captions_with_rounded_weights_are_identical(
    name: str, inputs: dict[str, Any], field: str
) -> None:
    cfg = tiny_cfg("TEST.PRECISION", "bf16")
    model = tiny_model(*MODELS[name])
    expected = predict(model, cfg, **inputs)
    round_weights(model, cfg)
    assert field in expected
    assert predict(model, cfg, **inputs) == expected


def linear_dtypes(module: nn.Module) -> set[torch.dtype]:
    return {m.weight.dtype for m in module.modules() if isinstance(m, nn.Linear)}


def test_a_language_backbone_that_encodes_answers_is_not_rounded() -> None:
    cfg = tiny_cfg("TEST.PRECISION", "bf16")
    detector, answering = tiny_model(), tiny_model(*MODELS["answers"])
    for model in (detector, answering):
        round_weights(model, cfg)
        assert linear_dtypes(model.backbone) == linear_dtypes(model.fused_head) == {torch.bfloat16}
    assert linear_dtypes(detector.language_backbone) == {torch.bfloat16}
    assert linear_dtypes(answering.language_backbone) == {torch.float32}


def test_adapters_and_their_base_layers_are_not_rounded(tmp_path: Path) -> None:
    save_weights(tiny_model(), tmp_path / "base.pth")
    tuning = ("MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.TUNING.NAME", "lora")
    cfg = tiny_cfg("TEST.PRECISION", "bf16", *tuning)
    model = build_tuned_model(cfg)
    round_weights(model, cfg)
    adapters = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    assert adapters
    assert all(linear_dtypes(adapter) == {torch.float32} for adapter in adapters)
    assert torch.bfloat16 in linear_dtypes(model.fused_head)


def test_full_precision_rounds_no_weights() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_weights(model, tiny_cfg())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
