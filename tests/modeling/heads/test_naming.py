from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from glipv2_d2.modeling.generation.beam_search import GenerationConfig
from glipv2_d2.modeling.heads.caption import CaptionHead
from glipv2_d2.modeling.heads.naming import NamePointer, NamingCaptionHead, names_in_texts
from glipv2_d2.structures import Prompt, Regions, TextFeatures, TokenBatch
from glipv2_d2.text.tokenizer import Tokenizer

WIDTH, NUM_CHANNELS, VOCAB_SIZE = 6, 5, 30522
NAMES = ["cat", "fire truck", "t-rex"]
CAT, TRUCK, REX = range(3)


def pieces() -> list[list[int]]:
    return Tokenizer().pieces(NAMES)


def padded_pieces() -> torch.Tensor:
    rows = [torch.tensor(tokens) for tokens in pieces()]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def make_head() -> NamingCaptionHead:
    torch.manual_seed(0)
    return NamingCaptionHead(
        pointer=NamePointer(language_dim=WIDTH, pieces=pieces()),
        language_dim=WIDTH,
        decoder=nn.Linear(WIDTH, VOCAB_SIZE),
        tokenizer=Tokenizer(max_tokens=40),
        decoding=GenerationConfig(),
        weight=1.0,
    )


def regions_called(names_per_image: list[list[int]], num_regions: int = 3) -> Regions:
    """Regions that match one name each, as surely as can be; rows of zeros behind them."""
    num_images = len(names_per_image)
    places = torch.zeros(num_images, num_regions, 5)
    logits = torch.zeros(num_images, num_regions, len(NAMES))
    for i, names in enumerate(names_per_image):
        for r, name in enumerate(names):
            places[i, r] = torch.tensor([0.2 + 0.3 * r, 0.5, 0.1, 0.1, 0.9])
            logits[i, r, name] = 10.0
    features = torch.zeros(num_images, num_regions, NUM_CHANNELS)
    return Regions(features, features, places, logits)


def read(texts: list[str]) -> tuple[TokenBatch, torch.Tensor]:
    tokens = replace(Tokenizer()([Prompt(text, (), ()) for text in texts]), causal=True)
    generator = torch.Generator().manual_seed(0)
    return tokens, torch.randn(*tokens.mask.shape, WIDTH, generator=generator)


def test_a_name_is_said_only_when_all_of_it_stands_there() -> None:
    tokens, _ = read(["a fire truck"])
    _, _, is_said = names_in_texts(tokens.input_ids, padded_pieces())
    # [CLS] a fire truck [SEP]
    assert is_said[0, :, TRUCK].int().tolist() == [0, 0, 0, 1, 1]
    assert not is_said[..., [CAT, REX]].any()


def test_a_begun_name_goes_on_with_its_next_token() -> None:
    tokens, _ = read(["t-rex"])
    token_ids, is_begun, _ = names_in_texts(tokens.input_ids, padded_pieces())
    expected = pieces()[REX]
    # The name's own tokens in turn, and after its end the first one again.
    assert token_ids[0, : len(expected), REX].tolist() == expected
    assert is_begun[0, :, REX].int().tolist() == [0] + [1] * (len(expected) - 1) + [0, 0]
    assert token_ids[0, -1, REX] == expected[0]


def test_articles_agree_with_the_names_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptionHead, "describe", lambda *_: ["a picture of a owl and a cat"])
    assert make_head().describe(None) == ["a picture of an owl and a cat"]


def test_what_was_written_is_not_named_again() -> None:
    tokens, hidden = read(["cat"])
    names = make_head().pointer(hidden, tokens.input_ids, regions_called([[CAT, TRUCK]]))
    before, after = names.shares[0, 0], names.shares[0, 1]
    assert before[CAT] / before[TRUCK] > 10 * after[CAT] / after[TRUCK]


def test_words_of_its_own_do_not_write_a_name_again() -> None:
    head = make_head()
    tokens, hidden = read(["a cat"])
    cat = pieces()[CAT][0]
    log_probs = [
        head.log_probs(hidden[:, 1], tokens.input_ids[:, :end], regions_called([[]]))[0, cat]
        for end in (2, 3)
    ]
    # As much less as a learned weight says, but for what the others gain.
    assert float(log_probs[1] - log_probs[0]) == pytest.approx(-4, abs=0.01)


def test_a_region_of_zeros_is_not_named() -> None:
    tokens, hidden = read(["a"])
    regions = regions_called([[CAT]])
    regions.name_logits[0, 2, REX] = 100.0
    names = make_head().pointer(hidden, tokens.input_ids, regions)
    assert names.shares[0, :, REX].max() < 1e-6


def test_an_image_without_regions_gets_the_words_of_the_plain_head() -> None:
    head = make_head()
    tokens, hidden = read(["a dog"])
    own = head.predict(hidden[:, -1]).log_softmax(dim=-1)
    found = head.log_probs(hidden[:, -1], tokens.input_ids, regions_called([[]]))
    torch.testing.assert_close(found, own)


def test_the_next_word_has_a_probability_of_one_in_all() -> None:
    head = make_head()
    tokens, hidden = read(["a fire", "the cat"])
    log_probs = head.log_probs(
        hidden[:, 2], tokens.input_ids[:, :3], regions_called([[TRUCK, CAT], [CAT]])
    )
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(2))


def test_training_and_writing_give_a_word_the_same_probability() -> None:
    head = make_head()
    tokens, hidden = read(["a fire truck", "t-rex", "cat"])
    regions = regions_called([[TRUCK, CAT], [REX, REX, CAT], []])
    in_training = head.next_words(hidden, tokens, regions)
    in_writing = [
        head.log_probs(hidden[[row], t], tokens.input_ids[[row], : t + 1], regions.images([row]))[
            0, tokens.input_ids[row, t + 1]
        ]
        for row in range(3)
        for t in range(int(tokens.mask[row].sum()) - 1)
    ]
    torch.testing.assert_close(in_training, torch.stack(in_writing))


def test_the_loss_teaches_to_name_the_region_that_is_there() -> None:
    """Two images that only their regions tell apart: the hidden words are the same."""
    head = make_head()
    tokens, hidden = read(["cat", "t-rex"])
    words = TextFeatures(hidden[:1].expand(2, -1, -1), tokens.mask, causal=True)
    regions = regions_called([[CAT], [REX]])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        head(words, tokens, regions)["loss_caption"].backward()
        optimizer.step()
    firsts = head.log_probs(words.hidden[:, 0], tokens.input_ids[:, :1], regions).exp()
    assert firsts[0, pieces()[CAT][0]] > 0.9
    assert firsts[1, pieces()[REX][0]] > 0.9


def test_no_caption_costs_nothing_and_reaches_every_weight() -> None:
    head = make_head()
    tokens, hidden = read(["a cat"])
    words = TextFeatures(hidden, tokens.mask, causal=True)
    loss = head(words.rows([]), tokens.rows([]), regions_called([]))["loss_caption"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_regions_that_were_compared_with_no_name_are_refused() -> None:
    tokens, hidden = read(["a cat"])
    with pytest.raises(ValueError, match="compared with names"):
        make_head().next_words(hidden, tokens, None)
