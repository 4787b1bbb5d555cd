"""The language layer of a fused block, trained from scratch: a layer of BERT or of CLIP.

Not transformers' layers, because GLIP clamps activations of BERT's between the steps (against fp16
overflow), because captions need a cache, and because the parameter names must not change with the
library (glip_reference.md 8).

N: texts. T: tokens. D: channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from glipv2_d2.modeling.generation.kv_cache import KVCache, causal_mask, extend
from glipv2_d2.structures import TextFeatures

MAX_ACTIVATION = 50000.0
LAYER_NORM_EPS = 1e-12  # BERT's, and in GLIP also CLIP's
# CLIP's
_INIT_STD = 0.02


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-MAX_ACTIVATION, MAX_ACTIVATION)


class LanguageLayer(nn.Module):
    """Self-attention between the tokens of a prompt, then a feed-forward network.

    A post-norm layer of BERT. Subclasses have the same parameters.
    """

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        """
        Args:
            dim: D.
            num_heads: attention heads.
            ffn_dim: hidden channels of the feed-forward network.
            dropout: on attention maps and outputs, in training.

        Raises:
            ValueError: ``dim`` is not a multiple of ``num_heads``.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
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

    def forward(self, text: TextFeatures) -> TextFeatures:
        """Encode (N, T, D) tokens. Padding is masked, and later tokens if the text is causal."""
        mask = text.mask[:, None, None]
        if text.causal:
            mask = mask & causal_mask(text.mask.shape[1], text.mask.device)
        hidden, _ = self._encode(text.hidden, mask, None)
        return replace(text, hidden=hidden)

    def encode_prefix(self, text: TextFeatures) -> tuple[TextFeatures, KVCache]:
        """As :meth:`forward` for non-causal text, with the cache for tokens that follow it."""
        hidden, cache = self._encode(text.hidden, text.mask[:, None, None], None)
        return replace(text, hidden=hidden), cache

    def decode_step(self, hidden: Tensor, cache: KVCache | None) -> tuple[Tensor, KVCache]:
        """Encode the next tokens of causal texts.

        Args:
            hidden: (N, T, D).
            cache: keys and values of the previous tokens; None: there are none.

        Returns:
            (N, T, D), and the extended cache.
        """
        num_past = cache.num_tokens if cache else 0
        return self._encode(hidden, causal_mask(hidden.shape[1], hidden.device, num_past), cache)

    def _encode(
        self, hidden: Tensor, mask: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        update, cache = self._self_attention(hidden, mask, cache)
        hidden = self.attention_norm(hidden + update)
        return _clamp(self.ffn_norm(hidden + self._feed_forward(hidden))), cache

    def _self_attention(
        self, hidden: Tensor, mask: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        """``mask``: True where a token attends, broadcast to (N, H, T, cached + T)."""
        query, key, value = (
            linear(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (N, H, T, d)
        cache = extend(cache, key, value)
        context = self._attend(query, cache.key, cache.value, mask).transpose(1, 2).flatten(2)
        return F.dropout(self.attention_out(context), self.dropout, self.training), cache

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """(N, H, T, d), and cached + T keys and values -> (N, H, T, d)."""
        scores = _clamp((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        return attention.to(value.dtype) @ value

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        hidden = _clamp(F.gelu(_clamp(self.ffn_in(hidden))))
        return F.dropout(_clamp(self.ffn_out(hidden)), self.dropout, self.training)


class ClipLanguageLayer(LanguageLayer):
    """A pre-norm layer of CLIP's text encoder, without its causal mask unless the text is causal.

    Source: GLIP's CLIPTransformerLayer, whose drop path is 0.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        activation: str = "quick_gelu",
        eps: float = LAYER_NORM_EPS,
    ) -> None:
        """
        Args:
            dim, num_heads, ffn_dim, dropout: as of :class:`LanguageLayer`; CLIP has no dropout.
            activation: of the feed-forward network, a name of transformers' activations.
            eps: of the layer norms.

        Raises:
            ValueError: ``dim`` is not a multiple of ``num_heads``, or the activation is unknown.
        """
        super().__init__(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
        if activation not in ACT2FN:
            raise ValueError(f"activation is {activation!r}; CLIP has 'quick_gelu' or 'gelu'")
        self.activation = ACT2FN[activation]
        self.attention_norm.eps = self.ffn_norm.eps = eps
        for linear in (self.query, self.key, self.value):
            # As one matrix of 3 D rows.
            nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)
            nn.init.zeros_(linear.bias)
        for linear in (self.attention_out, self.ffn_in, self.ffn_out):
            nn.init.trunc_normal_(linear.weight, std=_INIT_STD)
            nn.init.zeros_(linear.bias)

    def _encode(
        self, hidden: Tensor, mask: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        update, cache = self._self_attention(self.attention_norm(hidden), mask, cache)
        hidden = hidden + update
        return hidden + self._feed_forward(self.ffn_norm(hidden)), cache

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        hidden = self.ffn_out(self.activation(self.ffn_in(hidden)))
        return F.dropout(hidden, self.dropout, self.training)
