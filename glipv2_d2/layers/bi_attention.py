"""Bi-directional attention between image positions and text tokens with little memory.

N: images. P: positions of all levels. T: tokens. C, D: channels of image and text. H: heads of
width d.

:func:`memory_efficient_bi_attention` computes what the textbook form in
:mod:`glipv2_d2.modeling.fusion.bi_attention` computes. The textbook order projects all P positions
to H d channels three times. As there are few tokens, *absorbing* these projections into the text
gives the same numbers with fewer products (exact algebra):

- scores: (x Wq)(l Wk)^T = x (Wq K^T). Each key is projected down to C channels, per head and token.
- text to image: softmax(S) V Wo = softmax(S) (V Wo). Values are projected before the sum.
- image to text: A^T (x Wv) = (A^T x) Wv. Positions are summed before they are projected.

No activation of size P x H d exists, and only a block of the P x H T scores at a time
(:mod:`~glipv2_d2.layers.blockwise_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.blockwise_attention import AbsorbedText, TextContext, blockwise_attention
from glipv2_d2.layers.tracing import is_exporting_onnx

# On a CPU, softmax over rows shorter than a vector register falls back to scalar code, which costs
# ten times as much as a few tokens of padding.
MIN_TOKENS = 16


@dataclass(frozen=True)
class BiAttentionProjections:
    """Linear layers of attention in both directions.

    Attributes:
        num_heads: H.
        visual_query, visual_value: C -> H d.
        language_key, language_value: D -> H d.
        visual_out: H d -> C.
        language_out: H d -> D.
    """

    num_heads: int
    visual_query: nn.Linear
    visual_value: nn.Linear
    language_key: nn.Linear
    language_value: nn.Linear
    visual_out: nn.Linear
    language_out: nn.Linear

    @property
    def head_dim(self) -> int:
        return self.visual_query.out_features // self.num_heads


class BiAttentionFunction(Protocol):
    """Attends in both directions, as
    :func:`~glipv2_d2.modeling.fusion.bi_attention.bi_attention`.
    """

    def __call__(
        self,
        visual: Tensor,
        text: Tensor,
        text_mask: Tensor,
        visual_scale: Tensor,
        projections: BiAttentionProjections,
        dropout: float,
        /,
    ) -> tuple[Tensor, Tensor]: ...


class TextAttentionFunction(Protocol):
    """Attends from tokens to positions only, as
    :func:`~glipv2_d2.modeling.fusion.bi_attention.text_attention`.
    """

    def __call__(
        self, visual: Tensor, text: Tensor, projections: BiAttentionProjections, dropout: float, /
    ) -> Tensor: ...


def memory_efficient_bi_attention(
    visual: Tensor,
    text: Tensor,
    text_mask: Tensor,
    visual_scale: Tensor,
    projections: BiAttentionProjections,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend from positions to tokens and from tokens to positions.

    Arguments and results as of :func:`~glipv2_d2.modeling.fusion.bi_attention.bi_attention`.
    Without gradients, ``visual`` may be overwritten by the result.
    """
    visual, context = bi_attention_context(
        visual, text, text_mask, visual_scale, projections, dropout
    )
    return visual, project_context(context, projections, dropout)[:, : text.shape[1]]


def memory_efficient_text_attention(
    visual: Tensor, text: Tensor, projections: BiAttentionProjections, dropout: float = 0.0
) -> Tensor:
    """Attend from tokens to positions only.

    Arguments and results as of :func:`~glipv2_d2.modeling.fusion.bi_attention.text_attention`.
    """
    return project_context(text_context(visual, text, projections, dropout), projections, dropout)


def bi_attention_context(
    visual: Tensor,
    text: Tensor,
    text_mask: Tensor,
    visual_scale: Tensor,
    projections: BiAttentionProjections,
    dropout: float,
) -> tuple[Tensor, TextContext]:
    """As :func:`memory_efficient_bi_attention`, before the text context is projected.

    The context has at least ``MIN_TOKENS`` tokens; those beyond T are padding.
    """
    absorbed = _absorb_text(*_pad_tokens(text, text_mask), visual_scale, projections, dropout)
    visual, context = blockwise_attention(visual, absorbed, dropout=dropout)
    return _add_output_bias(visual, visual_scale, projections, dropout), context


def text_context(
    visual: Tensor, text: Tensor, projections: BiAttentionProjections, dropout: float
) -> TextContext:
    """As :func:`memory_efficient_text_attention`, before the result is projected."""
    _, context = blockwise_attention(visual, _absorb_keys(text, projections), dropout=dropout)
    return context


def project_context(
    context: TextContext, projections: BiAttentionProjections, dropout: float
) -> Tensor:
    """Apply the value and output projections of image-to-text attention, (N, T, D)."""
    heads = (projections.num_heads, -1)
    features = context.features.unflatten(1, heads) * _dropout_scale(dropout)
    value_weight = projections.visual_value.weight.view(*heads, features.shape[-1])
    value_bias = projections.visual_value.bias.view(heads)
    value = torch.einsum("nhtc,hdc->nthd", features, value_weight)
    # The bias counts as often as the weights of a token sum to: once, unless dropout changes it.
    weight_sum = context.weight_sum.unflatten(1, heads) * _dropout_scale(dropout)
    value = value + weight_sum.transpose(1, 2)[..., None].to(value.dtype) * value_bias
    return projections.language_out(value.flatten(2))


def _absorb_text(
    text: Tensor,
    text_mask: Tensor,
    visual_scale: Tensor,
    projections: BiAttentionProjections,
    dropout: float,
) -> AbsorbedText:
    """Keys and values of the tokens in absorbed form.

    The values include ``visual_scale`` and, without dropout, the output bias, so that the product
    that sums the values also scales the few tokens and not the many positions.
    """
    absorbed = _absorb_keys(text, projections)
    value = _split_heads(projections.language_value(text), projections)
    out_weight = projections.visual_out.weight.view(
        -1, projections.num_heads, projections.head_dim
    )  # (C, H, d)
    value = torch.einsum("nthd,chd->nhtc", value, out_weight).flatten(1, 2)
    value = value * (visual_scale * _dropout_scale(dropout))
    if dropout == 0:
        # The weights of each head sum to 1, so every value gets its share of the bias.
        value = value + visual_scale * projections.visual_out.bias / projections.num_heads
    # Added to the scores, as masked_fill takes several times as long on a CPU.
    dtype = torch.promote_types(absorbed.key.dtype, torch.float32)
    padding_bias = _lowest_where(~text_mask[:, None, None], dtype)
    return replace(absorbed, value=value.to(absorbed.key.dtype), padding_bias=padding_bias)


def _add_output_bias(
    visual: Tensor, visual_scale: Tensor, projections: BiAttentionProjections, dropout: float
) -> Tensor:
    """Add the output bias with dropout, where the weights of a head no longer sum to 1."""
    return visual + visual_scale * projections.visual_out.bias if dropout > 0 else visual


def _pad_tokens(text: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pad (N, T, D) features and their (N, T) mask to at least ``MIN_TOKENS`` tokens."""
    # In ONNX the number of tokens is an input.
    missing = 0 if is_exporting_onnx() else max(0, MIN_TOKENS - text.shape[1])
    return F.pad(text, (0, 0, 0, missing)), F.pad(text_mask, (0, missing))


def _absorb_keys(text: Tensor, projections: BiAttentionProjections) -> AbsorbedText:
    """Keys without values."""
    num_heads, head_dim = projections.num_heads, projections.head_dim
    key = _split_heads(projections.language_key(text), projections) * head_dim**-0.5  # (N, T, H, d)
    query_weight = projections.visual_query.weight.view(num_heads, head_dim, -1)  # (H, d, C)
    query_bias = projections.visual_query.bias.view(num_heads, head_dim)
    absorbed_key = torch.einsum("nthd,hdc->ncht", key, query_weight).flatten(2)
    key_bias = torch.einsum("nthd,hd->nht", key, query_bias).flatten(1)[:, None]
    return AbsorbedText(num_heads, absorbed_key, key_bias.to(absorbed_key.dtype))


def _split_heads(x: Tensor, projections: BiAttentionProjections) -> Tensor:
    return x.unflatten(-1, (projections.num_heads, projections.head_dim))


def _dropout_scale(dropout: float) -> float:
    return 1 / (1 - dropout)


def _lowest_where(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, torch.finfo(dtype).min)
