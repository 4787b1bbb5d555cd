"""Language-modeling head: predicts the token at a position, for masked tokens and captions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glipv2_d2.modeling.language import LanguageBackbone

BERT_STD = 0.02
"""Standard deviation of BERT's initial weights."""


class LMPredictionHead(nn.Module):
    """BERT's prediction head: dense layer, GELU, layer norm, decoder (glip_reference.md 14)."""

    def __init__(self, *, language_dim: int, decoder: nn.Module) -> None:
        """
        Args:
            language_dim: D.
            decoder: (..., D) -> (..., vocabulary) logits, see :func:`build_token_decoder`.
        """
        super().__init__()
        self.dense = nn.Linear(language_dim, language_dim)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(language_dim, eps=1e-12)
        self.decoder = decoder
        nn.init.normal_(self.dense.weight, std=BERT_STD)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) fused text -> (..., vocabulary) logits."""
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


class TiedDecoder(nn.Module):
    """Logits against the word embeddings of a text encoder, with a bias of its own.

    As in BERT, and unlike in GLIP. The state dict has the bias alone: the embeddings belong to the
    encoder.
    """

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        # In a tuple, so that the encoder's weights are not registered here a second time.
        self._embeddings = (embeddings,)
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)."""
        return nn.functional.linear(hidden, self._embeddings[0].weight, self.bias)


def build_token_decoder(kind: str, language_backbone: LanguageBackbone, *, key: str) -> nn.Module:
    """Build the layer that maps D-wide vectors to logits of the vocabulary.

    Args:
        kind: "own" (a linear layer, as in GLIP) or "tied" (:class:`TiedDecoder`).
        key: the config key that holds ``kind``.

    Raises:
        ValueError: ``kind`` is neither.
    """
    if kind == "tied":
        return TiedDecoder(language_backbone.word_embeddings)
    if kind != "own":
        raise ValueError(f"{key} is {kind!r}; choose 'own' or 'tied'")
    decoder = nn.Linear(language_backbone.width, language_backbone.vocab_size)
    nn.init.normal_(decoder.weight, std=BERT_STD)
    nn.init.zeros_(decoder.bias)
    return decoder
