from __future__ import annotations

import pytest
import torch

from glipv2_d2.layers import blockwise_attention
from glipv2_d2.modeling.fusion.bi_attention import BiAttention
from glipv2_mini.modeling.logsumexp_attention import LogSumExpBiAttention

SIZES = {"visual_dim": 6, "language_dim": 10, "attention_dim": 16, "num_heads": 4, "dropout": 0.0}


def attentions() -> tuple[BiAttention, LogSumExpBiAttention]:
    """The attention of the core, and the extended one with its weights."""
    torch.manual_seed(0)
    plain, extended = BiAttention(**SIZES).double(), LogSumExpBiAttention(**SIZES).double()
    missing = extended.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["logsumexp_projection.weight", "logsumexp_projection.bias"]
    return plain, extended


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(2, 13, 6, generator=generator).double()
    text = torch.randn(2, 5, 10, generator=generator).double()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return visual, text, mask, torch.rand(6, generator=generator).double()


def test_it_is_initialised_as_bi_attention() -> None:
    plain, extended = attentions()
    torch.testing.assert_close(extended(*inputs()), plain(*inputs()))


def test_the_image_is_updated_as_by_bi_attention() -> None:
    plain, extended = attentions()
    torch.nn.init.normal_(extended.logsumexp_projection.weight)
    torch.testing.assert_close(extended(*inputs())[0], plain(*inputs())[0])


def test_logsumexp_of_the_scores_is_added_to_the_text_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, extended = attentions()
    torch.nn.init.normal_(extended.logsumexp_projection.weight)
    visual, text = inputs()[:2]
    query = extended.visual_query(visual).unflatten(-1, (4, 4)) / 2
    key = extended.language_key(text).unflatten(-1, (4, 4))
    scores = torch.einsum("nphd,nthd->npth", query, key)
    expected = plain.attend_text(visual, text) + extended.logsumexp_projection(
        scores.logsumexp(dim=1)
    )
    torch.testing.assert_close(extended(*inputs())[1], expected)
    # Three positions at a time.
    monkeypatch.setattr(blockwise_attention, "MAX_BLOCK_SCORES", {"cpu": 3 * 2 * 4 * 5})
    with torch.no_grad():
        torch.testing.assert_close(extended.attend_text(visual, text), expected)
