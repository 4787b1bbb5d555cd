from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from glipv2_d2.modeling.generation.beam_search import GenerationConfig
from glipv2_d2.modeling.heads.caption import CaptionHead
from glipv2_d2.structures import Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer

WIDTH = 6
VOCAB_SIZE = 30522


def make_head(**decoding: int) -> CaptionHead:
    torch.manual_seed(0)
    return CaptionHead(
        language_dim=WIDTH,
        decoder=nn.Linear(WIDTH, VOCAB_SIZE),
        tokenizer=Tokenizer(max_tokens=40),
        decoding=GenerationConfig(**decoding),
        weight=3.0,
    )


@pytest.fixture
def tokens() -> TokenBatch:
    texts = [Prompt(text, (), ()) for text in ("a red cat", "dogs")]
    return replace(Tokenizer()(texts), causal=True)


def language(tokens: TokenBatch) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*tokens.mask.shape, WIDTH, generator=generator, requires_grad=True)
    return TextFeatures(hidden, tokens.mask, causal=True)


def test_every_word_and_the_end_are_guessed_from_the_word_before(tokens: TokenBatch) -> None:
    """Four guesses for three words, and two for one."""
    head, words = make_head(), language(tokens)
    loss = head(words, tokens)["loss_caption"]
    guesses = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    losses = [
        F.cross_entropy(head.predict(words.hidden[row, t]), tokens.input_ids[row, t + 1])
        for row, t in guesses
    ]
    torch.testing.assert_close(loss, 3 * torch.stack(losses).mean())


def test_the_last_token_and_padding_guess_nothing(tokens: TokenBatch) -> None:
    words = language(tokens)
    make_head()(words, tokens)["loss_caption"].backward()
    guesses = words.hidden.grad.abs().sum(dim=-1) > 0
    assert guesses.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]


def test_no_caption_costs_nothing_and_reaches_every_weight(tokens: TokenBatch) -> None:
    head = make_head()
    loss = head(language(tokens).rows([]), tokens.rows([]))["loss_caption"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_captions_longer_than_a_prompt_are_refused() -> None:
    assert make_head(max_length=38).decoding.max_length == 38
    with pytest.raises(ValueError, match="up to 39 tokens.*longer than the 38"):
        make_head(max_length=39)
