"""Causal text in the fused heads, and the text output of the heads on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from glipv2_d2.modeling.fusion.fused_head import FusedDynamicHead
from glipv2_d2.modeling.fusion.language_layer import ClipLanguageLayer, LanguageLayer
from glipv2_d2.structures import ImageFeatures, TextFeatures

TEXT_DIM, VISUAL_DIM = 12, 8
SIZES = {
    "visual_dim": VISUAL_DIM,
    "language_dim": TEXT_DIM,
    "num_blocks": 3,
    "num_groups": 4,
    "fusion_dim": 16,
    "fusion_heads": 4,
    "fusion_dropout": 0.0,
    "language_heads": 3,
    "language_ffn_dim": 20,
    "language_dropout": 0.0,
}
NUM_IMAGES, NUM_TOKENS = 2, 6

Pyramid = dict[str, torch.Tensor]


def build(language_layer_class: type[LanguageLayer]) -> FusedDynamicHead:
    torch.manual_seed(0)
    built = FusedDynamicHead(**SIZES, language_layer_class=language_layer_class).eval()
    # Offsets are initialised to zero and the scales of the updates to small values.
    for name, parameter in built.named_parameters():
        if "offset" in name or "gamma" in name:
            torch.nn.init.normal_(parameter)
    return built


def random_features(channels: int) -> Pyramid:
    generator = torch.Generator().manual_seed(0)
    shapes = {"p3": 8, "p4": 4, "p5": 2}
    return {
        name: torch.randn(NUM_IMAGES, channels, size, size, generator=generator)
        for name, size in shapes.items()
    }


@pytest.fixture(params=[LanguageLayer, ClipLanguageLayer])
def head(request: pytest.FixtureRequest) -> FusedDynamicHead:
    return build(request.param)


@pytest.fixture
def features() -> Pyramid:
    return random_features(VISUAL_DIM)


@pytest.fixture
def text() -> TextFeatures:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(NUM_IMAGES, NUM_TOKENS, TEXT_DIM, generator=generator)
    mask = torch.ones(NUM_IMAGES, NUM_TOKENS, dtype=torch.bool)
    return TextFeatures(hidden, mask, causal=True)


def changed(text: TextFeatures, token: int) -> TextFeatures:
    hidden = text.hidden.clone()
    hidden[:, token] = hidden[:, token].flip(-1)
    return replace(text, hidden=hidden)


def test_a_token_does_not_affect_earlier_tokens(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures
) -> None:
    before, after = (head(features, tokens)[1].hidden for tokens in (text, changed(text, 3)))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_causal_text_does_not_affect_the_maps(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures
) -> None:
    fused, _ = head(features, text)
    fused_with_other_text, _ = head(features, changed(text, 0))
    assert all(torch.equal(fused[name], fused_with_other_text[name]) for name in fused)


def test_the_image_affects_causal_text(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures
) -> None:
    _, fused = head(features, text)
    _, other = head({name: level.flip(0) for name, level in features.items()}, text)
    assert not torch.allclose(fused.hidden, other.hidden)


def images(features: Pyramid, rows: list[int]) -> ImageFeatures:
    """The pyramids of some images; ``rows`` has the image of each text."""
    return ImageFeatures(features, [], rows)


@pytest.mark.parametrize("causal", [True, False])
def test_fuse_text_equals_the_text_output_of_forward(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures, causal: bool
) -> None:
    text = replace(text, causal=causal)
    text.mask[1, 4:] = False
    whole, alone = head(features, text)[1], head.fuse_text(images(features, [0, 1]), text)
    torch.testing.assert_close(
        alone.hidden[text.mask], whole.hidden[text.mask], atol=1e-6, rtol=1e-5
    )
    assert alone.causal is causal


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_fuse_text_of_several_texts_per_image_equals_one_copy_of_the_image_per_text(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures, num_blocks: int
) -> None:
    head.blocks = head.blocks[:num_blocks]
    texts = text.rows([0, 1, 0, 1])
    texts = replace(texts, hidden=texts.hidden + torch.randn_like(texts.hidden))
    rows = [1, 0, 1, 1]
    copies = {name: level[rows] for name, level in features.items()}
    expected = head.fuse_text(images(copies, [0, 1, 2, 3]), texts).hidden[texts.mask]
    ours = head.fuse_text(images(features, rows), texts).hidden[texts.mask]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_fuse_text_equal_those_of_forward(
    head: FusedDynamicHead, features: Pyramid, text: TextFeatures
) -> None:
    parameters = dict(head.train().named_parameters())

    def gradients(fused: TextFeatures) -> dict[str, torch.Tensor | None]:
        total = fused.hidden.square().sum()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, grads, strict=True))

    head.activation_checkpointing = True
    alone = gradients(head.fuse_text(images(features, [0, 1]), text))
    for name, gradient in gradients(head(features, text)[1]).items():
        zeros = torch.zeros_like(parameters[name])
        ours, expected = (zeros if g is None else g for g in (alone[name], gradient))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [(1,) * NUM_TOKENS, (2, 3, 1)])
@pytest.mark.parametrize("texts_per_image", [1, 3])
def test_decoding_in_steps_equals_one_forward_pass(
    head: FusedDynamicHead,
    features: Pyramid,
    text: TextFeatures,
    texts_per_image: int,
    steps: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(NUM_IMAGES * texts_per_image, NUM_TOKENS, TEXT_DIM, generator=generator)
    repeated = {name: x.repeat_interleave(texts_per_image, 0) for name, x in features.items()}
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    _, whole = head(repeated, TextFeatures(hidden, mask, causal=True))
    visual, cache, outputs = head.project_visual(features), None, []
    for step in hidden.split(steps, dim=1):
        output, cache = head.decode_step(visual, step, cache)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.hidden, atol=1e-5, rtol=1e-5)


def test_causal_language_layer_equals_torchs_attention_with_a_causal_mask() -> None:
    torch.manual_seed(0)
    layer = LanguageLayer(dim=12, num_heads=3, ffn_dim=20, dropout=0.0).eval()
    hidden = torch.randn(2, 5, 12)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    projections = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.load_state_dict(layer.attention_out.state_dict())
    masked = torch.ones(5, 5, dtype=torch.bool).triu(1)
    update, _ = attention(hidden, hidden, hidden, attn_mask=masked)
    normed = layer.attention_norm(hidden + update)
    inner = torch.nn.functional.gelu(layer.ffn_in(normed))
    expected = layer.ffn_norm(normed + layer.ffn_out(inner))
    text = TextFeatures(hidden, torch.ones(2, 5, dtype=torch.bool), causal=True)
    torch.testing.assert_close(layer(text).hidden, expected, atol=1e-5, rtol=1e-5)
