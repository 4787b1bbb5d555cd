from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from glipv2_d2.modeling.heads.caption import CaptionFeatures, CaptionHead
from glipv2_d2.structures import GenerationConfig, Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer

WIDTH = 6
VOCAB_SIZE = 30522


def make_head(**generation: int) -> CaptionHead:
    torch.manual_seed(0)
    return CaptionHead(
        language_dim=WIDTH,
        decoder=nn.Linear(WIDTH, VOCAB_SIZE),
        tokenizer=Tokenizer(max_tokens=40),
        generation=GenerationConfig(**generation),
        weight=3.0,
    )


@pytest.fixture
def tokens() -> TokenBatch:
    texts = [Prompt(text, (), ()) for text in ("a red cat", "dogs")]
    return replace(Tokenizer()(texts), causal=True)


def make_text(tokens: TokenBatch) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*tokens.mask.shape, WIDTH, generator=generator, requires_grad=True)
    return TextFeatures(hidden, tokens.mask, causal=True)


def test_every_token_and_the_end_are_predicted_from_the_token_before(tokens: TokenBatch) -> None:
    """Four predictions for three words, two for one."""
    head, text = make_head(), make_text(tokens)
    loss = head.losses(CaptionFeatures(text, tokens))["loss_caption"]
    positions = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    losses = [
        F.cross_entropy(head(text.hidden[row, t]), tokens.input_ids[row, t + 1])
        for row, t in positions
    ]
    torch.testing.assert_close(loss, 3 * torch.stack(losses).mean())


def test_nothing_is_predicted_from_the_last_token_and_padding(tokens: TokenBatch) -> None:
    text = make_text(tokens)
    make_head().losses(CaptionFeatures(text, tokens))["loss_caption"].backward()
    has_gradient = text.hidden.grad.abs().sum(dim=-1) > 0
    assert has_gradient.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]


def test_without_captions_the_loss_is_0_and_connected_to_every_weight(tokens: TokenBatch) -> None:
    head = make_head()
    loss = head.losses(CaptionFeatures(make_text(tokens).rows([]), tokens.rows([])))["loss_caption"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_a_maximal_length_beyond_the_token_limit_is_an_error() -> None:
    assert make_head(max_length=38).generation.max_length == 38
    with pytest.raises(ValueError, match="max_length is 39, but max_tokens 40 leaves room for 38"):
        make_head(max_length=39)
