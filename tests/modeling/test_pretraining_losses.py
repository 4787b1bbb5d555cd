"""The inter-image and masked language modeling losses in the whole model."""

from __future__ import annotations

import pytest
import torch
from helpers.models import random_image, tiny_model, training_input

from glipv2_d2.modeling import GLIPv2

BOTH = ("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0)
EVERY_WORD = (*BOTH, "MODEL.MLM.PROB", 1.0)
PHRASES = ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")
FROZEN_TEXT = ("MODEL.LANGUAGE_BACKBONE.FREEZE", True)
PARTS = ("loss_heads.inter_image.", "loss_heads.masked_language.")


def batch() -> list[dict]:
    return [
        training_input([[5, 5, 50, 60]], [0], classes=["cat", "traffic light"]),
        training_input([[8, 20, 60, 60]], [0], caption="a dog on a mat", phrases=[[[0, 5]]]),
    ]


def fail(*_: object) -> None:
    raise AssertionError("a token is masked at evaluation")


def test_losses_without_a_weight_are_not_built() -> None:
    model = tiny_model().train()
    assert [name for name in model.state_dict() if name.startswith(PARTS)] == []
    assert set(model(batch())) == {"loss_token", "loss_box", "loss_centerness"}


@pytest.mark.parametrize(
    ("opts", "added"),
    [(BOTH[:2], "loss_inter_image"), (BOTH[2:], "loss_mlm")],
    ids=["inter-image", "masked words"],
)
def test_each_loss_can_be_used_alone(opts: tuple, added: str) -> None:
    losses = tiny_model(*opts).train()(batch())
    assert set(losses) == {"loss_token", "loss_box", "loss_centerness", added}


@pytest.mark.parametrize(
    "opts",
    [
        (),
        PHRASES,
        FROZEN_TEXT,
        (*PHRASES, *FROZEN_TEXT),
        ("MODEL.FUSED_HEAD.NAME", "DynamicHead"),
    ],
    ids=["bert", "phrases", "frozen bert", "frozen phrases", "no fusion"],
)
def test_both_heads_have_gradients_with_every_language_backbone(opts: tuple) -> None:
    model = tiny_model(*EVERY_WORD, *opts).train()
    losses = model(batch())
    (losses["loss_inter_image"] + losses["loss_mlm"]).backward()
    without_gradient = [
        name
        for name, p in model.named_parameters()
        if name.startswith(PARTS) and (p.grad is None or not p.grad.any())
    ]
    assert without_gradient == []


@pytest.mark.parametrize("opts", [(), (*PHRASES, *FROZEN_TEXT)], ids=["bert", "frozen phrases"])
def test_every_trained_parameter_gets_a_finite_gradient_without_boxes(opts: tuple) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model(*BOTH, *opts).train()
    losses = model([training_input([], [], classes=["cat", "dog"])])
    assert losses["loss_inter_image"] == losses["loss_mlm"] == 0
    sum(losses.values()).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in trained.items() if grad is None or not grad.isfinite().all()] == []


def test_losses_are_finite_if_an_image_has_neither_phrases_nor_boxes() -> None:
    inputs = [*batch(), training_input([], [], caption="an empty street", phrases=[])]
    losses = tiny_model(*BOTH).train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_inter_image"] > 0


def test_no_token_is_masked_at_evaluation() -> None:
    model = tiny_model(*EVERY_WORD)
    model.loss_heads["masked_language"].mask = fail
    with torch.no_grad():
        model([{"image": random_image(), "classes": ["cat", "dog"]}])


def test_training_between_evaluations_caches_no_masked_prompt() -> None:
    """Not even with a frozen language backbone, which stays in evaluation mode."""
    model = tiny_model(*EVERY_WORD, *FROZEN_TEXT)
    x = {"image": random_image(), "classes": ["cat", "traffic light"]}

    def text_features() -> torch.Tensor:
        inputs = []
        handle = model.fused_head.register_forward_pre_hook(lambda _, args: inputs.append(args[1]))
        with torch.no_grad():
            model.eval()([x])
        handle.remove()
        return inputs[0].hidden

    before = text_features()
    with torch.no_grad():
        model.train()(batch())
    assert torch.equal(text_features(), before)


def record_input_ids(model: GLIPv2) -> list[torch.Tensor]:
    """The rows of token ids that the BERT encodes; the list grows as the model runs."""
    rows: list[torch.Tensor] = []
    model.language_backbone.bert.register_forward_pre_hook(
        lambda _, __, kwargs: rows.extend(kwargs["input_ids"].unbind()), with_kwargs=True
    )
    return rows


def test_phrases_are_encoded_with_their_masked_tokens() -> None:
    model = tiny_model(*BOTH, *PHRASES).train()
    mask = 103
    model.loss_heads["masked_language"].masker = lambda ids, _: (
        ids.masked_fill(ids == model.query_builder.tokenizer.encode(["traffic"])[0][0], mask),
        torch.zeros_like(ids, dtype=torch.bool),
    )
    rows = record_input_ids(model)
    model([training_input([[5, 5, 50, 60]], [0], classes=["cat", "traffic light"])])
    (light,) = model.query_builder.tokenizer.encode(["light"])[0]
    assert [101, mask, light, 102] in [ids.tolist() for ids in rows]


def test_a_prompt_of_a_list_beyond_the_token_limit_is_a_class_list() -> None:
    names = [f"thing number {i}" for i in range(300)]
    prompt, _ = tiny_model().query_builder.prompts.for_training(
        training_input([[5, 5, 50, 60]], [250], classes=names)
    )
    assert prompt.is_class_list


def test_bfloat16_autocast_gives_finite_losses() -> None:
    model = tiny_model(*EVERY_WORD).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
    assert losses["loss_inter_image"].dtype == losses["loss_mlm"].dtype == torch.float32
    assert all(loss.isfinite() for loss in losses.values())
