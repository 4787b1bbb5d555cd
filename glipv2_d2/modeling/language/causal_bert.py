"""Causal self-attention through the layers of a BERT, with a KV cache.

transformers' BertModel attends to both sides unless its config makes it a decoder, which would then
be all it can do. So we call its layers one by one and replace only their self-attention. The result
equals that of transformers' decoder (tests/modeling/language/test_causal_bert.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from glipv2_d2.modeling.generation.kv_cache import KVCache, causal_mask, extend


def encode_causal(
    bert: BertModel, input_ids: Tensor, cache: Sequence[KVCache] | None = None
) -> tuple[Tensor, list[KVCache]]:
    """Encode further tokens of R texts, each token attending to itself and those before it.

    Padding at the end of a text therefore needs no mask.

    Args:
        input_ids: (R, T) int64, [CLS] first.
        cache: keys and values of the tokens before these, per layer; None at the beginning.

    Returns:
        (R, T, D) hidden states of the last layer, and the cache with these tokens appended.
    """
    num_cached = cache[0].num_tokens if cache else 0
    num_tokens, device = input_ids.shape[1], input_ids.device
    positions = torch.arange(num_cached, num_cached + num_tokens, device=device)[None]
    hidden = bert.embeddings(input_ids=input_ids, position_ids=positions)
    mask = causal_mask(num_tokens, device, num_cached)
    new_cache = []
    for index, layer in enumerate(bert.encoder.layer):
        attended, layer_cache = _self_attention(
            layer.attention.self, hidden, mask, cache[index] if cache else None
        )
        # Both output modules add their second argument and apply layer norm.
        hidden = layer.attention.output(attended, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
        new_cache.append(layer_cache)
    return hidden, new_cache


def _self_attention(
    attention: Any, hidden: Tensor, mask: Tensor, cache: KVCache | None
) -> tuple[Tensor, KVCache]:
    """(R, T, D) hidden states attend to the cached tokens and to each other, under ``mask``."""
    query, key, value = (
        linear(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for linear in (attention.query, attention.key, attention.value)
    )  # (R, H, T, d)
    extended = extend(cache, key, value)
    dropout = attention.dropout.p if attention.training else 0.0
    attended = F.scaled_dot_product_attention(
        query, extended.key, extended.value, attn_mask=mask, dropout_p=dropout
    )
    return attended.transpose(1, 2).flatten(2), extended
