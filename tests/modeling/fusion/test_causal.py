"""Words that read what is left of them, and images that read no words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from glipv2_d2.modeling.fusion import ClassifierFusedDynamicHead
from glipv2_d2.modeling.fusion.fused_head import FusedDynamicHead, ImageFusedDynamicHead
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.structures import TextFeatures

WORD_WIDTH, VISUAL_DIM = 12, 8
SIZES = {
    "visual_dim": VISUAL_DIM,
    "language_dim": WORD_WIDTH,
    "num_blocks": 3,
    "num_groups": 4,
    "fusion_dim": 16,
    "fusion_heads": 4,
    "fusion_dropout": 0.0,
    "language_heads": 3,
    "language_ffn_dim": 20,
    "language_dropout": 0.0,
}
CHANNELS = {
    FusedDynamicHead: VISUAL_DIM,
    ClassifierFusedDynamicHead: VISUAL_DIM + WORD_WIDTH,
}
NUM_IMAGES, NUM_TOKENS = 2, 6

Pyramid = dict[str, torch.Tensor]


@pytest.fixture(params=list(CHANNELS), ids=lambda kind: kind.__name__)
def head(request: pytest.FixtureRequest) -> FusedDynamicHead:
    torch.manual_seed(0)
    built = request.param(**SIZES).eval()
    # At their start the offsets are zeros, and the words add little.
    for name, parameter in built.named_parameters():
        if "offset" in name or "gamma" in name:
            torch.nn.init.normal_(parameter)
    return built


@pytest.fixture
def features(head: FusedDynamicHead) -> Pyramid:
    generator = torch.Generator().manual_seed(0)
    shapes = {"p3": 8, "p4": 4, "p5": 2}
    return {
        name: torch.randn(NUM_IMAGES, CHANNELS[type(head)], size, size, generator=generator)
        for name, size in shapes.items()
    }


@pytest.fixture
def language() -> TextFeatures:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(NUM_IMAGES, NUM_TOKENS, WORD_WIDTH, generator=generator)
    mask = torch.ones(NUM_IMAGES, NUM_TOKENS, dtype=torch.bool)
    return TextFeatures(hidden, mask, causal=True)


def changed(language: TextFeatures, token: int) -> TextFeatures:
    hidden = language.hidden.clone()
    hidden[:, token] = hidden[:, token].flip(-1)
    return replace(language, hidden=hidden)


def test_a_later_word_changes_nothing_before_it(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures
) -> None:
    before, after = (head(features, words)[1].hidden for words in (language, changed(language, 3)))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_the_image_reads_no_word(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures
) -> None:
    fused, _ = head(features, language)
    of_other_words, _ = head(features, changed(language, 0))
    assert all(torch.equal(fused[name], of_other_words[name]) for name in fused)


def test_the_words_read_the_image(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures
) -> None:
    _, words = head(features, language)
    _, of_another = head({name: level.flip(0) for name, level in features.items()}, language)
    assert not torch.allclose(words.hidden, of_another.hidden)


def test_images_that_read_words_alone_leave_causal_ones_unread() -> None:
    unread = {key: value for key, value in SIZES.items() if not key.startswith("language_f")}
    kept = {key: unread[key] for key in unread if key not in ("language_heads", "language_dropout")}
    head = ImageFusedDynamicHead(**kept).eval()
    features = {"p3": torch.randn(1, VISUAL_DIM, 4, 4)}
    one, other = (
        TextFeatures(torch.randn(1, 3, WORD_WIDTH), torch.ones(1, 3).bool(), causal=True)
        for _ in range(2)
    )
    assert torch.equal(head(features, one)[0]["p3"], head(features, other)[0]["p3"])


@pytest.mark.parametrize("causal", [True, False])
def test_the_words_alone_equal_those_beside_the_maps(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures, causal: bool
) -> None:
    language = replace(language, causal=causal)
    language.mask[1, 4:] = False
    whole, alone = head(features, language)[1], head.words(features, language, [0, 1])
    torch.testing.assert_close(
        alone.hidden[language.mask], whole.hidden[language.mask], atol=1e-6, rtol=1e-5
    )
    assert alone.causal is causal


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_texts_of_one_image_are_read_as_if_each_had_an_image_of_its_own(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures, num_blocks: int
) -> None:
    head.blocks = head.blocks[:num_blocks]
    texts = language.rows([0, 1, 0, 1])
    texts = replace(texts, hidden=texts.hidden + torch.randn_like(texts.hidden))
    image_of = [1, 0, 1, 1]
    copies = {name: level[image_of] for name, level in features.items()}
    expected = head.words(copies, texts, range(4)).hidden[texts.mask]
    ours = head.words(features, texts, image_of).hidden[texts.mask]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_the_words_alone_give_the_gradients_of_those_beside_the_maps(
    head: FusedDynamicHead, features: Pyramid, language: TextFeatures
) -> None:
    parameters = dict(head.train().named_parameters())

    def gradients(words: TextFeatures) -> dict[str, torch.Tensor | None]:
        total = words.hidden.square().sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    head.activation_checkpointing = True
    alone = gradients(head.words(features, language, [0, 1]))
    for name, gradient in gradients(head(features, language)[1]).items():
        zeros = torch.zeros_like(parameters[name])
        ours, expected = (zeros if g is None else g for g in (alone[name], gradient))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pieces", [(1,) * NUM_TOKENS, (2, 3, 1)])
@pytest.mark.parametrize("texts_per_image", [1, 3])
def test_reading_on_equals_reading_at_once(
    head: FusedDynamicHead,
    features: Pyramid,
    language: TextFeatures,
    texts_per_image: int,
    pieces: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(NUM_IMAGES * texts_per_image, NUM_TOKENS, WORD_WIDTH, generator=generator)
    repeated = {name: x.repeat_interleave(texts_per_image, 0) for name, x in features.items()}
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    _, whole = head(repeated, TextFeatures(hidden, mask, causal=True))
    looks, past, parts = head.look(features), None, []
    for piece in hidden.split(pieces, dim=1):
        read, past = head.read_on(looks, piece, past)
        parts.append(read)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.hidden, atol=1e-5, rtol=1e-5)


def test_a_causal_language_layer_equals_torchs_attention_under_a_triangle() -> None:
    torch.manual_seed(0)
    layer = LanguageLayer(dim=12, num_heads=3, ffn_dim=20, dropout=0.0).eval()
    hidden = torch.randn(2, 5, 12)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    projections = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.load_state_dict(layer.attention_out.state_dict())
    hides = torch.ones(5, 5, dtype=torch.bool).triu(1)
    read, _ = attention(hidden, hidden, hidden, attn_mask=hides)
    normed = layer.attention_norm(hidden + read)
    inner = torch.nn.functional.gelu(layer.ffn_in(normed))
    expected = layer.ffn_norm(normed + layer.ffn_out(inner))
    language = TextFeatures(hidden, torch.ones(2, 5, dtype=torch.bool), causal=True)
    torch.testing.assert_close(layer(language).hidden, expected, atol=1e-5, rtol=1e-5)
