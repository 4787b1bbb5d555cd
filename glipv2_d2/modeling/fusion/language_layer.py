"""The language layer of a fused block: one post-norm BERT layer, trained from scratch.

Our own and not transformers', because the reference clamps activations between its steps (against
fp16 overflow) and because its names must not change with the library (GLIP spec 8).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.generation.kv_cache import KVCache, causal_mask, extend
from glipv2_d2.structures import TextFeatures

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

    def forward(self, language: TextFeatures) -> TextFeatures:
        """(N, T, D) features -> the same shape; padding is read by nobody."""
        allowed = language.mask[:, None, None]
        if language.causal:
            allowed = allowed & causal_mask(language.mask.shape[1], language.mask.device)
        hidden, _ = self._read(language.hidden, allowed, None)
        return replace(language, hidden=hidden)

    def look(self, language: TextFeatures) -> tuple[TextFeatures, KVCache]:
        """As :meth:`forward`, and what is kept for words that are read behind these."""
        hidden, kept = self._read(language.hidden, language.mask[:, None, None], None)
        return replace(language, hidden=hidden), kept

    def read_on(self, hidden: Tensor, past: KVCache | None) -> tuple[Tensor, KVCache]:
        """(R, T, D) further words of texts that are read from left to right.

        Args:
            past: what was kept of the words before them.

        Returns:
            (R, T, D), and what is kept now.
        """
        num_past = past.num_tokens if past else 0
        return self._read(hidden, causal_mask(hidden.shape[1], hidden.device, num_past), past)

    def _read(
        self, hidden: Tensor, allowed: Tensor, past: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        read, kept = self._attend(hidden, allowed, past)
        hidden = self.attention_norm(hidden + read)
        return _clamp(self.ffn_norm(hidden + self._feed_forward(hidden))), kept

    def _attend(
        self, hidden: Tensor, allowed: Tensor, past: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        query, key, value = (
            linear(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (N, H, T, d)
        kept = extend(past, key, value)
        scores = _clamp((query @ kept.key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5)
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        attention = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        read = (attention.to(value.dtype) @ kept.value).transpose(1, 2).flatten(2)
        return F.dropout(self.attention_out(read), self.dropout, self.training), kept

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        hidden = _clamp(F.gelu(_clamp(self.ffn_in(hidden))))
        return F.dropout(_clamp(self.ffn_out(hidden)), self.dropout, self.training)
