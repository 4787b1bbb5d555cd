"""Masking of tokens for masked language modeling (BERT, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the chosen tokens, as in BERT; the rest is unchanged.
_SHARE_MASKED = 0.8
_SHARE_REPLACED = 0.1


@dataclass(frozen=True)
class WordMasker:
    """Chooses random tokens: 80 % become [MASK], 10 % a random token, 10 % are unchanged.

    Attributes:
        mask_token_id: the id of [MASK].
        vocab_size: random tokens are uniform over this many ids.
        prob: probability that a token is chosen.
    """

    mask_token_id: int
    vocab_size: int
    prob: float

    def __post_init__(self) -> None:
        if not 0 < self.prob <= 1:
            raise ValueError(
                f"prob is {self.prob}, not in (0, 1]; BERT uses 0.15. To mask nothing, set the "
                "weight of the loss to 0"
            )

    def __call__(
        self, input_ids: Tensor, is_word: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask tokens of a batch.

        Args:
            input_ids: (N, T) int64.
            is_word: (N, T) bool, the tokens that may be chosen.
            generator: on the device of the ids; default: torch's global one.

        Returns:
            the masked ids (N, T), and which tokens were chosen (N, T) bool.
        """
        selection, action = (
            torch.rand(input_ids.shape, device=input_ids.device, generator=generator)
            for _ in range(2)
        )
        random_ids = torch.randint(
            self.vocab_size, input_ids.shape, device=input_ids.device, generator=generator
        )
        is_chosen = is_word & (selection < self.prob)
        is_replaced = is_chosen & (action < _SHARE_MASKED + _SHARE_REPLACED)
        is_masked = is_chosen & (action < _SHARE_MASKED)
        masked = torch.where(is_replaced, random_ids, input_ids)
        return masked.masked_fill(is_masked, self.mask_token_id), is_chosen
