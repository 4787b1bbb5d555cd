from __future__ import annotations

import pytest
import torch

from glipv2_d2.text.word_masking import WordMasker

MASK, VOCAB = 103, 1000
# Ids outside the vocabulary, which no random token equals.
IDS = torch.arange(VOCAB, VOCAB + 40_000).view(40, 1000)
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


def masked(
    is_word: torch.Tensor = EVERYWHERE, prob: float = 0.15, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    masker = WordMasker(mask_token_id=MASK, vocab_size=VOCAB, prob=prob)
    return masker(IDS, is_word, torch.Generator().manual_seed(seed))


def test_shares_equal_berts() -> None:
    masked_ids, is_chosen = masked()
    assert is_chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    chosen = masked_ids[is_chosen]
    assert (chosen == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (chosen < VOCAB).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert (chosen == IDS[is_chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_random_tokens_cover_the_vocabulary() -> None:
    masked_ids, _ = masked(prob=1.0)
    replacements = masked_ids[(masked_ids < VOCAB) & (masked_ids != MASK)]
    assert len(replacements.unique()) > 0.95 * VOCAB


def test_only_words_are_masked() -> None:
    is_word = torch.arange(1000).expand(40, 1000) % 3 == 1
    masked_ids, is_chosen = masked(is_word, prob=1.0)
    assert torch.equal(is_chosen, is_word)
    assert torch.equal(masked_ids[~is_word], IDS[~is_word])


def test_words_that_are_not_chosen_are_unchanged() -> None:
    masked_ids, is_chosen = masked()
    assert torch.equal(masked_ids[~is_chosen], IDS[~is_chosen])


@pytest.mark.parametrize("prob", [0.0, 1.5])
def test_an_invalid_probability_is_rejected(prob: float) -> None:
    with pytest.raises(ValueError, match=rf"prob is {prob}"):
        WordMasker(mask_token_id=MASK, vocab_size=VOCAB, prob=prob)
