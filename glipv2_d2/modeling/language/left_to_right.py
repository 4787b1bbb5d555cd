"""A BERT that reads from left to right, one word or many at a time.

transformers' BertModel reads in both directions. It would read from left to right and keep what it
has read if its config called it a decoder, but then it could not do the other any more. Therefore
its layers are called here one by one, and only the attention between them is our own; it equals
that of a decoder (tests/modeling/language/test_left_to_right.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from glipv2_d2.modeling.generation.kv_cache import KVCache, causal_mask, extend


def read_left_to_right(
    bert: BertModel, input_ids: Tensor, past: Sequence[KVCache] | None = None
) -> tuple[Tensor, list[KVCache]]:
    """Read further tokens of texts; each sees what is left of it and itself.

    Padding behind a text is seen by nobody before it.

    Args:
        input_ids: (R, T) int64, [CLS] first.
        past: per layer, what it kept of the tokens before these.

    Returns:
        (R, T, D) of the last layer, and per layer what it keeps.
    """
    num_past = past[0].num_tokens if past else 0
    num_tokens, device = input_ids.shape[1], input_ids.device
    positions = torch.arange(num_past, num_past + num_tokens, device=device)[None]
    hidden = bert.embeddings(input_ids=input_ids, position_ids=positions)
    allowed = causal_mask(num_tokens, device, num_past)
    kept_per_layer = []
    for index, layer in enumerate(bert.encoder.layer):
        read, kept = _attend(layer.attention.self, hidden, allowed, past[index] if past else None)
        # These two add what they are given second, and normalise.
        hidden = layer.attention.output(read, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
        kept_per_layer.append(kept)
    return hidden, kept_per_layer


def _attend(
    attention: Any, hidden: Tensor, allowed: Tensor, past: KVCache | None
) -> tuple[Tensor, KVCache]:
    """What (R, T, D) tokens read of the past and of each other."""
    query, key, value = (
        linear(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for linear in (attention.query, attention.key, attention.value)
    )  # (R, H, T, d)
    kept = extend(past, key, value)
    dropout = attention.dropout.p if attention.training else 0.0
    read = F.scaled_dot_product_attention(
        query, kept.key, kept.value, attn_mask=allowed, dropout_p=dropout
    )
    return read.transpose(1, 2).flatten(2), kept
