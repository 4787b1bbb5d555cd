"""The language layer of a fused block: one post-norm BERT layer, trained from scratch.

Our own and not transformers', because the reference clamps activations between its steps (against
fp16 overflow) and because its names must not change with the library (GLIP spec 8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.structures import LanguageFeatures

MAX_ACTIVATION = 50000.0
LAYER_NORM_EPS = 1e-12  # BERT's


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-MAX_ACTIVATION, MAX_ACTIVATION)


class LanguageLayer(nn.Module):
    """Self-attention among the words of a prompt, then a feed-forward network."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the language width {dim} is not a multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.attention_out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, language: LanguageFeatures) -> LanguageFeatures:
        """(N, T, D) features -> the same shape; padding is read by nobody."""
        hidden = self.attention_norm(language.hidden + self._attend(language))
        hidden = _clamp(self.ffn_norm(hidden + self._feed_forward(hidden)))
        return LanguageFeatures(hidden, language.mask)

    def _attend(self, language: LanguageFeatures) -> Tensor:
        query, key, value = (
            linear(language.hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (N, H, T, d)
        scores = _clamp((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5)
        scores = scores.masked_fill(~language.mask[:, None, None], torch.finfo(scores.dtype).min)
        attention = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        read = (attention.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return F.dropout(self.attention_out(read), self.dropout, self.training)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        hidden = _clamp(F.gelu(_clamp(self.ffn_in(hidden))))
        return F.dropout(_clamp(self.ffn_out(hidden)), self.dropout, self.training)
