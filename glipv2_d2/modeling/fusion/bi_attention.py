"""Bi-directional attention between image positions and text tokens, GLIP's X-MHA.

N: images. P: positions of all levels. T: tokens. C, D: channels of image and text. H: heads of
width d, H d = 2048 in the released models.

:func:`bi_attention` is the textbook form. :class:`BiAttention` computes the same with less memory
and fewer products, see :mod:`glipv2_d2.layers.bi_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.bi_attention import (
    BiAttentionFunction,
    BiAttentionProjections,
    TextAttentionFunction,
    memory_efficient_bi_attention,
    memory_efficient_text_attention,
)


def bi_attention(
    visual: Tensor,
    text: Tensor,
    text_mask: Tensor,
    visual_scale: Tensor,
    projections: BiAttentionProjections,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend from positions to tokens and from tokens to positions, in textbook form.

    Both directions share one matrix of scores. Its softmax over the tokens weights the text values
    of each position (text to image); its softmax over the positions weights the visual values of
    each token (image to text). Padding tokens are masked. All positions take part, including those
    of padded image area. Source: GLIP's BiMultiHeadAttention (glip_reference.md 7), without its
    clamps against overflow in fp16.

    Args:
        visual: (N, P, C).
        text: (N, T, D).
        text_mask: (N, T) bool, True on valid tokens.
        visual_scale: (C,), factors of the residual update of the positions.
        projections: the linear layers.
        dropout: on both attention maps.

    Returns:
        (N, P, C), ``visual`` plus the scaled update, and (N, T, D), the update of the text, neither
        scaled nor added to ``text``.
    """
    scores = _scores(visual, text, projections)
    padding = ~text_mask[:, None, None]
    attention = scores.masked_fill(padding, torch.finfo(scores.dtype).min).softmax(dim=-1)
    value = _split_heads(projections.language_value(text), projections)
    update = projections.visual_out(_merge_heads(F.dropout(attention, dropout) @ value))
    text_update = _attend_to_positions(scores, visual, projections, dropout)
    return torch.addcmul(visual, visual_scale, update), text_update


def text_attention(
    visual: Tensor, text: Tensor, projections: BiAttentionProjections, dropout: float = 0.0
) -> Tensor:
    """Attend from tokens to positions only: the second result of :func:`bi_attention`.

    Args:
        visual: (N, P, C).
        text: (N, T, D). Tokens do not affect each other.

    Returns:
        (N, T, D).
    """
    scores = _scores(visual, text, projections)
    return _attend_to_positions(scores, visual, projections, dropout)


def _scores(visual: Tensor, text: Tensor, projections: BiAttentionProjections) -> Tensor:
    """(N, H, P, T)."""
    query = _split_heads(projections.visual_query(visual), projections)
    key = _split_heads(projections.language_key(text), projections)
    return (query * projections.head_dim**-0.5) @ key.transpose(-1, -2)


def _attend_to_positions(
    scores: Tensor, visual: Tensor, projections: BiAttentionProjections, dropout: float
) -> Tensor:
    attention = scores.transpose(-1, -2).softmax(dim=-1)
    value = _split_heads(projections.visual_value(visual), projections)
    return projections.language_out(_merge_heads(F.dropout(attention, dropout) @ value))


def _split_heads(x: Tensor, projections: BiAttentionProjections) -> Tensor:
    """(N, L, H d) -> (N, H, L, d)."""
    return x.unflatten(-1, (projections.num_heads, projections.head_dim)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    """(N, H, L, d) -> (N, L, H d)."""
    return x.transpose(1, 2).flatten(2)


class BiAttention(nn.Module):
    """Bi-directional attention with its projections."""

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention_dim: int,
        num_heads: int,
        dropout: float,
        function: BiAttentionFunction = memory_efficient_bi_attention,
        text_function: TextAttentionFunction = memory_efficient_text_attention,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention_dim: H d.
            num_heads: H.
            dropout: on the attention maps, in training.
            function, text_function: compute the attention in both directions, and from tokens to
                positions only.

        Raises:
            ValueError: ``attention_dim`` is not a multiple of ``num_heads``.
        """
        super().__init__()
        if attention_dim % num_heads:
            raise ValueError(
                f"attention_dim {attention_dim} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.function = function
        self.text_function = text_function
        self.visual_query = xavier_linear(visual_dim, attention_dim)
        self.language_key = xavier_linear(language_dim, attention_dim)
        self.language_value = xavier_linear(language_dim, attention_dim)
        self.visual_out = xavier_linear(attention_dim, visual_dim)
        self.visual_value = xavier_linear(visual_dim, attention_dim)
        self.language_out = xavier_linear(attention_dim, language_dim)

    @property
    def projections(self) -> BiAttentionProjections:
        return BiAttentionProjections(
            num_heads=self.num_heads,
            visual_query=self.visual_query,
            language_key=self.language_key,
            language_value=self.language_value,
            visual_out=self.visual_out,
            visual_value=self.visual_value,
            language_out=self.language_out,
        )

    @property
    def active_dropout(self) -> float:
        """The dropout probability of the current mode."""
        return self.dropout if self.training else 0.0

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, visual_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update positions and tokens; arguments and results as of :func:`bi_attention`.

        Without gradients, ``visual`` may be overwritten by the result.
        """
        return self.function(
            visual, text, text_mask, visual_scale, self.projections, self.active_dropout
        )

    def attend_text(self, visual: Tensor, text: Tensor) -> Tensor:
        """Update tokens only; arguments and results as of :func:`text_attention`."""
        return self.text_function(visual, text, self.projections, self.active_dropout)


def xavier_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias."""
    linear = nn.Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
