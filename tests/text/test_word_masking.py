from __future__ import annotations

import pytest
import torch

from glipv2_d2.text.word_masking import WordMasker

MASK, VOCAB = 103, 1000
# Ids that a replacement is never taken for: they lie outside the vocabulary.
IDS = torch.arange(VOCAB, VOCAB + 40_000).view(40, 1000)
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


def masked(
    is_word: torch.Tensor = EVERYWHERE, prob: float = 0.15, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    masker = WordMasker(mask_token_id=MASK, vocab_size=VOCAB, prob=prob)
    return masker(IDS, is_word, torch.Generator().manual_seed(seed))


def test_shares_are_those_of_bert() -> None:
    hidden, is_chosen = masked()
    assert is_chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    fates = hidden[is_chosen]
    assert (fates == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (fates < VOCAB).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert (fates == IDS[is_chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_replacements_are_from_the_whole_vocabulary() -> None:
    hidden, _ = masked(prob=1.0)
    replacements = hidden[(hidden < VOCAB) & (hidden != MASK)]
    assert len(replacements.unique()) > 0.95 * VOCAB


def test_what_is_no_word_is_never_touched() -> None:
    is_word = torch.arange(1000).expand(40, 1000) % 3 == 1
    hidden, is_chosen = masked(is_word, prob=1.0)
    assert torch.equal(is_chosen, is_word)
    assert torch.equal(hidden[~is_word], IDS[~is_word])


def test_words_that_were_not_chosen_stay() -> None:
    hidden, is_chosen = masked()
    assert torch.equal(hidden[~is_chosen], IDS[~is_chosen])


@pytest.mark.parametrize("prob", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(prob: float) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.MLM\.PROB is {prob}"):
        WordMasker(mask_token_id=MASK, vocab_size=VOCAB, prob=prob)
