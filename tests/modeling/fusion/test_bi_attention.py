from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glipv2_d2.modeling.fusion import banded_attention
from glipv2_d2.modeling.fusion.bi_attention import (
    BiAttention,
    BiAttentionFusion,
    EvidentBiAttention,
    WordAttention,
    WordFusion,
    flatten_levels,
    unflatten_levels,
)
from glipv2_d2.structures import TextFeatures


def make_attention(dropout: float = 0.0) -> BiAttention:
    torch.manual_seed(0)
    attention = BiAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=dropout
    )
    for linear in attention.children():
        torch.nn.init.normal_(linear.bias)
    return attention


def textbook(
    attention: BiAttention, visual: Tensor, language: Tensor, mask: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention as usually written: project all, then attend."""
    heads = attention.num_heads

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (N, H, ., d)

    query = split(attention.visual_query(visual) * attention.head_dim**-0.5)
    scores = query @ split(attention.language_key(language)).transpose(-1, -2)
    to_text = scores.transpose(-1, -2).softmax(dim=-1)
    to_image = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=-1)
    read_words = to_image @ split(attention.language_value(language))
    read_positions = to_text @ split(attention.visual_value(visual))
    return (
        visual + scale * attention.visual_out(read_words.transpose(1, 2).flatten(2)),
        attention.language_out(read_positions.transpose(1, 2).flatten(2)),
    )


def random_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(2, 13, 6, generator=generator)
    language = torch.randn(2, 5, 10, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return visual, language, mask, torch.rand(6, generator=generator)


def test_absorbed_form_equals_the_textbook() -> None:
    attention, inputs = make_attention(), random_inputs()
    for ours, expected in zip(attention(*inputs), textbook(attention, *inputs), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("band_scores", [1, 3 * 2 * 4 * 5, 10_000])
def test_bands_of_positions_equal_all_at_once(
    band_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, (visual, language, mask, scale) = make_attention().double(), random_inputs()
    # Scores far apart: the best position of a word comes early for some and late for others.
    visual, language, scale = visual.double() * 30, language.double(), scale.double()
    whole = attention(visual, language, mask, scale)
    monkeypatch.setattr(banded_attention, "MAX_BAND_SCORES", {"cpu": band_scores})
    with torch.no_grad():
        in_bands = attention(visual, language, mask, scale)
    for ours, expected in zip(in_bands, whole, strict=True):
        torch.testing.assert_close(ours, expected)


def test_gradients_of_the_absorbed_form_equal_the_textbooks() -> None:
    attention, inputs = make_attention(), random_inputs()
    parameters = [*attention.parameters(), inputs[-1].requires_grad_()]

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(out.square().sum() for out in outputs), parameters)

    ours = gradients(attention(*inputs))
    for gradient, expected in zip(ours, gradients(textbook(attention, *inputs)), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_padding_of_the_text_changes_nothing() -> None:
    attention, (visual, language, mask, scale) = make_attention(), random_inputs()
    padded_image, padded_text = attention(visual[1:], language[1:], mask[1:], scale)
    image, text = attention(visual[1:], language[1:, :3], mask[1:, :3], scale)
    torch.testing.assert_close(padded_image, image)
    torch.testing.assert_close(padded_text[:, :3], text)


def test_evidence_is_the_logarithm_of_the_sum_over_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"visual_dim": 6, "language_dim": 10, "attention_dim": 16, "num_heads": 4}
    torch.manual_seed(0)
    plain = BiAttention(**sizes, dropout=0.0).double()
    evident = EvidentBiAttention(**sizes, dropout=0.0).double()
    evident.load_state_dict(plain.state_dict(), strict=False)
    inputs = [x.double() if x.is_floating_point() else x for x in random_inputs()]
    visual, language = inputs[:2]
    # From zeros to start with.
    torch.testing.assert_close(evident(*inputs), plain(*inputs))
    torch.nn.init.normal_(evident.evidence.weight)
    query = evident.visual_query(visual).unflatten(-1, (4, 4)) / 2
    key = evident.language_key(language).unflatten(-1, (4, 4))
    scores = torch.einsum("nphd,nthd->npth", query, key)
    expected = plain.read_image(visual, language) + evident.evidence(scores.logsumexp(dim=1))
    monkeypatch.setattr(banded_attention, "MAX_BAND_SCORES", {"cpu": 3 * 2 * 4 * 5})
    with torch.no_grad():
        torch.testing.assert_close(evident.read_image(visual, language), expected)


def test_dropout_also_drops_the_bias_that_the_words_read() -> None:
    attention, (visual, *others) = make_attention(dropout=0.99), random_inputs()
    torch.nn.init.zeros_(attention.visual_value.weight)  # only the bias is left to be read
    torch.nn.init.zeros_(attention.language_out.bias)
    torch.manual_seed(0)
    _, text = attention.train()(visual[:, :1], *others)
    assert text.eq(0).all(dim=-1).any(), "a word that reads nothing gets nothing"


def test_dropout_leaves_the_bias_of_what_positions_read() -> None:
    attention, inputs = make_attention(dropout=0.5), random_inputs()
    torch.nn.init.zeros_(attention.language_value.weight)
    torch.nn.init.zeros_(attention.language_value.bias)
    read, _ = attention.train()(*inputs)
    visual, scale = inputs[0], inputs[-1]
    torch.testing.assert_close(read, visual + scale * attention.visual_out.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_finite_with_padding(dtype: torch.dtype) -> None:
    attention, inputs = make_attention(), random_inputs()
    with torch.autocast("cpu", dtype=dtype):
        outputs = attention(*inputs)
    assert all(out.isfinite().all() for out in outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_much_the_same_gradients(dtype: torch.dtype) -> None:
    attention, inputs = make_attention(), random_inputs()
    leaves = [*attention.parameters(), inputs[0].requires_grad_(), inputs[-1].requires_grad_()]

    def gradients() -> tuple[Tensor, ...]:
        loss = sum(out.float().square().sum() for out in attention(*inputs))
        return torch.autograd.grad(loss, leaves)

    expected = gradients()
    with torch.autocast("cpu", dtype=dtype):
        ours = gradients()
    for gradient, exact in zip(ours, expected, strict=True):
        assert gradient.dtype == exact.dtype
        # Of the key's bias, which every position sees alike, nothing but noise is left.
        assert (gradient - exact).norm() < 0.05 * exact.norm() + 0.02


def test_recomputing_it_drops_the_same() -> None:
    attention, inputs = make_attention(dropout=0.5).train(), random_inputs()
    gradients = []
    for run in (attention, partial(checkpoint, attention, use_reentrant=False)):
        torch.manual_seed(0)
        loss = sum(out.square().sum() for out in run(*inputs))
        gradients.append(torch.autograd.grad(loss, list(attention.parameters())))
    for ours, expected in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_means_over_many_positions_do_not_overflow_in_fp16(with_gradients: bool) -> None:
    attention, (_, language, mask, scale) = make_attention(), random_inputs()
    visual = torch.full((2, 20_000, 6), 4.0)
    expected = attention(visual, language, mask, scale)[1]
    with torch.autocast("cpu", dtype=torch.float16), torch.set_grad_enabled(with_gradients):
        _, text = attention(visual.clone(), language, mask, scale)
    torch.testing.assert_close(text.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_autocast_does_not_round_the_positions(with_gradients: bool) -> None:
    attention, (visual, language, mask, scale) = make_attention(), random_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradients):
        read, _ = attention(visual.clone(), language, mask, scale * 0)
    assert torch.equal(read, visual)


def test_training_without_gradients_computes_what_it_computes_with_them() -> None:
    attention, (visual, *others) = make_attention(dropout=0.5).train(), random_inputs()
    torch.manual_seed(0)
    expected = attention(visual, *others)
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(attention(visual, *others), expected)


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of its 4 heads"):
        BiAttention(visual_dim=4, language_dim=4, attention_dim=10, num_heads=4, dropout=0.0)


def test_unflatten_is_the_inverse_of_flatten() -> None:
    levels = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 3)]
    for ours, level in zip(unflatten_levels(flatten_levels(levels), levels), levels, strict=True):
        assert torch.equal(ours, level)


def test_unflattened_levels_are_channels_last_and_flatten_without_a_change_of_layout() -> None:
    levels = unflatten_levels(torch.randn(1, 20, 3), [torch.empty(1, 3, 4, 5)])
    assert levels[0].is_contiguous(memory_format=torch.channels_last)
    assert flatten_levels(levels).is_contiguous()


def test_fusion_without_scale_returns_the_normalised_inputs() -> None:
    attention = BiAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=0.0
    )
    fusion = BiAttentionFusion(visual_dim=6, language_dim=10, attention=attention, layer_scale=0.0)
    features = [torch.randn(1, 6, 3, 3)]
    language = TextFeatures(torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool))
    fused, fused_language = fusion(features, language)
    normed = torch.nn.functional.layer_norm(features[0].permute(0, 2, 3, 1), (6,))
    torch.testing.assert_close(fused[0].permute(0, 2, 3, 1), normed)
    torch.testing.assert_close(
        fused_language.hidden, torch.nn.functional.layer_norm(language.hidden, (10,))
    )


def test_positions_read_the_words_alike_in_both_attentions() -> None:
    both, inputs = make_attention(), random_inputs()
    words_only = WordAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=0.0
    )
    words_only.load_state_dict(
        {name: p for name, p in both.state_dict().items() if name in words_only.state_dict()}
    )
    torch.testing.assert_close(words_only(*inputs), both(*inputs)[0])


def test_word_fusion_leaves_the_words_as_they_are() -> None:
    attention = WordAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=0.0
    )
    fusion = WordFusion(visual_dim=6, language_dim=10, attention=attention, layer_scale=1.0)
    language = TextFeatures(torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool))
    fused, after = fusion([torch.randn(1, 6, 3, 3)], language)
    assert after is language
    assert fused[0].shape == (1, 6, 3, 3)
