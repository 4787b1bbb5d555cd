"""From the vector of a place in a text to the word there: for masked words and for captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BERT_STD = 0.02
"""Standard deviation of BERT's initial weights."""


class LMPredictionHead(nn.Module):
    """BERT's prediction head (GLIP spec 14)."""

    def __init__(self, *, language_dim: int, decoder: nn.Module) -> None:
        """
        Args:
            language_dim: D.
            decoder: (..., D) -> (..., vocabulary) logits, see :func:`build_word_decoder`.
        """
        super().__init__()
        self.dense = nn.Linear(language_dim, language_dim)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(language_dim, eps=1e-12)
        self.decoder = decoder
        nn.init.normal_(self.dense.weight, std=BERT_STD)
        nn.init.zeros_(self.dense.bias)

    def predict(self, hidden: Tensor) -> Tensor:
        """(..., D) fused words -> (..., vocabulary) logits."""
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


class TiedDecoder(nn.Module):
    """Logits against the word embeddings of a text encoder, which keeps them; only a bias is new.

    As BERT ties them, and GLIP does not. In state dicts there is the bias alone.
    """

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        # In a tuple, so that the encoder's weights do not get a second name here.
        self._embeddings = (embeddings,)
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)."""
        return nn.functional.linear(hidden, self._embeddings[0].weight, self.bias)


def build_word_decoder(kind: str, language_backbone: Any, *, key: str) -> nn.Module:
    """What turns D wide vectors into logits of all words.

    Args:
        kind: "own" (a new linear layer) or "tied" (:class:`TiedDecoder`).
        language_backbone: says the width of its features and the size of its vocabulary; one with
            ``word_embeddings`` can lend them.
        key: of the config, which has the kind.

    Raises:
        ValueError: it is neither.
    """
    if kind == "tied":
        return TiedDecoder(language_backbone.word_embeddings)
    if kind != "own":
        raise ValueError(f"{key} is {kind!r}; choose 'own' or 'tied'")
    decoder = nn.Linear(language_backbone.width, language_backbone.vocab_size)
    nn.init.normal_(decoder.weight, std=BERT_STD)
    nn.init.zeros_(decoder.bias)
    return decoder
