from __future__ import annotations

import torch

from glipv2_d2.modeling.fusion.bi_attention import BiAttention
from glipv2_d2.modeling.fusion.fusion_layer import (
    BiAttentionFusion,
    flatten_levels,
    unflatten_levels,
)
from glipv2_d2.structures import TextFeatures


def test_unflatten_is_the_inverse_of_flatten() -> None:
    levels = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 3)]
    for ours, level in zip(unflatten_levels(flatten_levels(levels), levels), levels, strict=True):
        assert torch.equal(ours, level)


def test_unflattened_levels_are_channels_last_and_flatten_without_a_change_of_layout() -> None:
    levels = unflatten_levels(torch.randn(1, 20, 3), [torch.empty(1, 3, 4, 5)])
    assert levels[0].is_contiguous(memory_format=torch.channels_last)
    assert flatten_levels(levels).is_contiguous()


def test_fusion_with_zero_scale_returns_the_normalised_inputs() -> None:
    attention = BiAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=0.0
    )
    fusion = BiAttentionFusion(visual_dim=6, language_dim=10, attention=attention, layer_scale=0.0)
    features = [torch.randn(1, 6, 3, 3)]
    text = TextFeatures(torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool))
    fused, fused_text = fusion(features, text)
    normed = torch.nn.functional.layer_norm(features[0].permute(0, 2, 3, 1), (6,))
    torch.testing.assert_close(fused[0].permute(0, 2, 3, 1), normed)
    torch.testing.assert_close(
        fused_text.hidden, torch.nn.functional.layer_norm(text.hidden, (10,))
    )
