from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers.models import tiny_cfg
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.modeling.fusion.fused_head import DynamicHead, FusedDynamicHead
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.structures import ImageFeatures, TextFeatures

SIZES = {
    "visual_dim": 8,
    "language_dim": 12,
    "num_blocks": 2,
    "num_groups": 4,
    "fusion_dim": 16,
    "fusion_heads": 4,
    "fusion_dropout": 0.0,
    "language_heads": 3,
    "language_ffn_dim": 20,
    "language_dropout": 0.0,
}


def make_inputs() -> tuple[dict[str, torch.Tensor], TextFeatures]:
    generator = torch.Generator().manual_seed(0)
    features = {
        f"p{level}": torch.randn(2, 8, size, size, generator=generator)
        for level, size in ((3, 8), (4, 4), (5, 2))
    }
    hidden = torch.randn(2, 5, 12, generator=generator)
    return features, TextFeatures(hidden, torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))


def test_activation_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    head = FusedDynamicHead(**SIZES).train()
    gradients = []
    for checkpointing in (False, True):
        head.activation_checkpointing = checkpointing
        fused, text = head(*make_inputs())
        loss = sum(x.square().mean() for x in fused.values()) + text.hidden.square().mean()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_inputs_are_not_modified() -> None:
    features, text = make_inputs()
    before = {name: x.clone() for name, x in features.items()}, text.hidden.clone()
    FusedDynamicHead(**SIZES)(features, text)
    assert all(torch.equal(features[name], x) for name, x in before[0].items())
    assert torch.equal(text.hidden, before[1])


def test_unfused_maps_do_not_depend_on_the_text() -> None:
    head = DynamicHead(visual_dim=8, num_blocks=2, num_groups=4)
    features, text = make_inputs()
    other = TextFeatures(text.hidden + 1, text.mask)
    for name, x in head(features, text)[0].items():
        assert torch.equal(x, head(features, other)[0][name])


def test_fused_maps_depend_on_the_text() -> None:
    head = FusedDynamicHead(**SIZES).eval()
    features, text = make_inputs()
    other = TextFeatures(text.hidden.flip(-1), text.mask)
    assert not torch.allclose(head(features, text)[0]["p3"], head(features, other)[0]["p3"])


def test_language_layer_equals_a_bert_layer() -> None:
    torch.manual_seed(0)
    ours = LanguageLayer(dim=12, num_heads=3, ffn_dim=20, dropout=0.0).eval()
    config = BertConfig(
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = BertLayer(config).eval()
    pairs = {
        "attention.self.query": ours.query,
        "attention.self.key": ours.key,
        "attention.self.value": ours.value,
        "attention.output.dense": ours.attention_out,
        "attention.output.LayerNorm": ours.attention_norm,
        "intermediate.dense": ours.ffn_in,
        "output.dense": ours.ffn_out,
        "output.LayerNorm": ours.ffn_norm,
    }
    for name, module in pairs.items():
        theirs.get_submodule(name).load_state_dict(module.state_dict())
    _, text = make_inputs()
    bias = torch.zeros(2, 1, 1, 5).masked_fill(~text.mask[:, None, None], -1e9)
    expected = theirs(text.hidden, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    got = ours(text).hidden
    torch.testing.assert_close(got[text.mask], expected[text.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["FusedDynamicHead", "DynamicHead"])
def test_autocast_gives_finite_outputs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    unfused = {key: SIZES[key] for key in ("visual_dim", "num_blocks", "num_groups")}
    head = FusedDynamicHead(**SIZES) if name == "FusedDynamicHead" else DynamicHead(**unfused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused, _ = head.train()(*make_inputs())
    sum(x.float().square().mean() for x in fused.values()).backward()
    assert all(x.isfinite().all() for x in fused.values())
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_heads_that_do_not_fuse_text_raise_an_error_that_names_them() -> None:
    head = DynamicHead(visual_dim=8, num_blocks=1, num_groups=4)
    features, text = make_inputs()
    assert not head.fuses_text
    assert FusedDynamicHead.fuses_text
    for call in (
        lambda: head.fuse_text(ImageFeatures(features, [], [0, 1]), text),
        lambda: head.project_visual(features),
        lambda: head.decode_step([], text.hidden, None),
    ):
        with pytest.raises(NotImplementedError, match=r"DynamicHead does not fuse text"):
            call()


@pytest.mark.parametrize("name", ["FusedDynamicHead", "DynamicHead"])
@pytest.mark.parametrize("score_fused_text", [True, False])
def test_config_sets_which_text_regions_are_scored_against(
    name: str, score_fused_text: bool
) -> None:
    cfg = tiny_cfg()
    cfg.MODEL.FUSED_HEAD.NAME = name
    cfg.MODEL.GROUNDING.SCORE_FUSED_TEXT = score_fused_text
    head = build_fused_head(cfg, {"p3": ShapeSpec(channels=16, stride=8)}, 12)
    assert head.score_fused_text is score_fused_text


def test_levels_of_different_channels_are_refused() -> None:
    shapes = {name: ShapeSpec(channels=16 * i, stride=8 * i) for i, name in ((1, "p3"), (2, "p4"))}
    with pytest.raises(ValueError, match=r"same number of channels, got \[16, 32\]"):
        build_fused_head(tiny_cfg(), shapes, 12)
