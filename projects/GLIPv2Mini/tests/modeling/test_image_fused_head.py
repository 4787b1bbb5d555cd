from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers import blockwise_attention
from glipv2_d2.modeling.fusion.bi_attention import BiAttention, bi_attention
from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.image_fused_head import (
    ImageFusedDynamicHead,
    LogSumExpBiAttention,
    TextToImageAttention,
    TextToImageFusion,
)

SIZES = {"visual_dim": 6, "language_dim": 10, "attention_dim": 16, "num_heads": 4, "dropout": 0.0}
HEAD_SIZES = {
    "visual_dim": 8,
    "language_dim": 12,
    "num_blocks": 2,
    "num_groups": 4,
    "fusion_dim": 16,
    "fusion_heads": 4,
    "fusion_dropout": 0.0,
}


def random_inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(2, 13, 6, generator=generator).to(dtype)
    text = torch.randn(2, 5, 10, generator=generator).to(dtype)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return visual, text, mask, torch.rand(6, generator=generator).to(dtype)


def test_text_to_image_attention_is_one_direction_of_bi_attention() -> None:
    torch.manual_seed(0)
    both, inputs = BiAttention(**SIZES), random_inputs()
    one = TextToImageAttention(**SIZES)
    one.load_state_dict({k: v for k, v in both.state_dict().items() if k in one.state_dict()})
    torch.testing.assert_close(one(*inputs), bi_attention(*inputs, both.projections)[0])


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="attention_dim 10 is not a multiple of num_heads 4"):
        TextToImageAttention(**(SIZES | {"attention_dim": 10}))


def test_text_to_image_fusion_returns_the_text_unchanged() -> None:
    attention = TextToImageAttention(**SIZES)
    fusion = TextToImageFusion(visual_dim=6, language_dim=10, attention=attention, layer_scale=1.0)
    text = TextFeatures(torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool))
    fused, after = fusion([torch.randn(1, 6, 3, 3)], text)
    assert after is text
    assert fused[0].shape == (1, 6, 3, 3)


def test_logsumexp_of_the_scores_is_added_to_the_text_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    plain, extended = BiAttention(**SIZES).double(), LogSumExpBiAttention(**SIZES).double()
    extended.load_state_dict(plain.state_dict(), strict=False)
    inputs = random_inputs(torch.float64)
    visual, text = inputs[:2]
    # The projection is initialised to zero.
    torch.testing.assert_close(extended(*inputs), plain(*inputs))
    torch.nn.init.normal_(extended.logsumexp_projection.weight)
    query = extended.visual_query(visual).unflatten(-1, (4, 4)) / 2
    key = extended.language_key(text).unflatten(-1, (4, 4))
    scores = torch.einsum("nphd,nthd->npth", query, key)
    expected = plain.attend_text(visual, text) + extended.logsumexp_projection(
        scores.logsumexp(dim=1)
    )
    torch.testing.assert_close(extended(*inputs)[1], expected)
    monkeypatch.setattr(blockwise_attention, "MAX_BLOCK_SCORES", {"cpu": 3 * 2 * 4 * 5})
    with torch.no_grad():
        torch.testing.assert_close(extended.attend_text(visual, text), expected)


def test_image_fused_head_depends_on_the_text_and_returns_it_unchanged() -> None:
    torch.manual_seed(0)
    head = ImageFusedDynamicHead(**HEAD_SIZES).eval()
    features = {"p3": torch.randn(2, 8, 8, 8), "p4": torch.randn(2, 8, 4, 4)}
    text = TextFeatures(torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool))
    other = TextFeatures(text.hidden.flip(-1), text.mask)
    fused, after = head(features, text)
    assert after is text
    assert not torch.allclose(fused["p3"], head(features, other)[0]["p3"])


def test_image_fused_head_does_not_attend_to_causal_text() -> None:
    torch.manual_seed(0)
    head = ImageFusedDynamicHead(**HEAD_SIZES).eval()
    features = {"p3": torch.randn(1, 8, 4, 4)}
    one, other = (
        TextFeatures(torch.randn(1, 3, 12), torch.ones(1, 3).bool(), causal=True) for _ in range(2)
    )
    assert torch.equal(head(features, one)[0]["p3"], head(features, other)[0]["p3"])
