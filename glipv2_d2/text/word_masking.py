"""Hiding words of prompts, for a model to guess them (BERT, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the words that are chosen, as in BERT. The rest stays as it is.
_SHARE_MASKED = 0.8
_SHARE_REPLACED = 0.1


@dataclass(frozen=True)
class WordMasker:
    """Chooses words at random; most become [MASK], some another word, some stay.

    Attributes:
        mask_token_id: the id of [MASK].
        vocab_size: ids that a replaced word may get, all equally likely.
        prob: how many of the words are chosen.
    """

    mask_token_id: int
    vocab_size: int
    prob: float

    def __post_init__(self) -> None:
        if not 0 < self.prob <= 1:
            raise ValueError(
                f"MODEL.MLM.PROB is {self.prob}, not in (0, 1]: BERT has 0.15. To mask nothing set "
                "MODEL.MLM.WEIGHT to 0"
            )

    def __call__(
        self, input_ids: Tensor, is_word: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            input_ids: (N, T) int64.
            is_word: (N, T) bool, the tokens that may be chosen.
            generator: of the random numbers, on the device of the ids; default: torch's own.

        Returns:
            the ids with hidden words, and which words were chosen (N, T) bool.
        """
        chance, fate = (
            torch.rand(input_ids.shape, device=input_ids.device, generator=generator)
            for _ in range(2)
        )
        others = torch.randint(
            self.vocab_size, input_ids.shape, device=input_ids.device, generator=generator
        )
        is_chosen = is_word & (chance < self.prob)
        is_replaced = is_chosen & (fate < _SHARE_MASKED + _SHARE_REPLACED)
        is_masked = is_chosen & (fate < _SHARE_MASKED)
        hidden = torch.where(is_replaced, others, input_ids)
        return hidden.masked_fill(is_masked, self.mask_token_id), is_chosen
