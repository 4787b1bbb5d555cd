"""Bi-directional attention between all image positions and all words (GLIP's X-MHA).

N: images. P: positions of all levels. T: tokens. C, D: widths of image and text. H: heads, of
width d each; the attention runs in H d dimensions (2048 in the released models).

**Absorbed form.** The textbook order projects all P positions to H d channels three times. As there
are few tokens, the same numbers come cheaper by regrouping the products (exact algebra):

- scores  (x Wq)(l Wk)^T = x (Wq K^T): keys are projected down to C, per head and token;
- text -> image  softmax(S) V Wo = softmax(S) (V Wo): values are projected out before the sum;
- image -> text  A^T (x Wv) = (A^T x) Wv: positions are summed before they are projected.

No activation of P x H d ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.structures import LanguageFeatures

# The reference clamps the scores so that fp16 does not overflow.
MAX_SCORE = 50000.0


def _linear(in_dim: int, out_dim: int) -> nn.Linear:
    linear = nn.Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class _AbsorbedAttention(nn.Module):
    """What both kinds of attention share: the scores, and positions that read words."""

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention_dim: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention_dim: H d.
            num_heads: H.
            dropout: on the attention maps.
        """
        super().__init__()
        if attention_dim % num_heads:
            raise ValueError(
                f"the attention width {attention_dim} is not a multiple of its {num_heads} heads"
            )
        self.num_heads = num_heads
        self.head_dim = attention_dim // num_heads
        self.dropout = dropout
        self.visual_query = _linear(visual_dim, attention_dim)
        self.language_key = _linear(language_dim, attention_dim)
        self.language_value = _linear(language_dim, attention_dim)
        self.visual_out = _linear(attention_dim, visual_dim)

    def _scores(self, visual: Tensor, language: Tensor) -> Tensor:
        """(N, P, H, T), in at least fp32."""
        num_images, num_tokens = language.shape[:2]
        key = self._split_heads(self.language_key(language)) * self.head_dim**-0.5  # (N, T, H, d)
        query_weight = self.visual_query.weight.view(self.num_heads, self.head_dim, -1)  # (H, d, C)
        query_bias = self.visual_query.bias.view(self.num_heads, self.head_dim)
        absorbed_key = torch.einsum("nthd,hdc->ncht", key, query_weight).flatten(2)  # (N, C, H T)
        constant = torch.einsum("nthd,hd->nht", key, query_bias).reshape(num_images, 1, -1)
        dtype = absorbed_key.dtype
        scores = torch.baddbmm(constant.to(dtype), visual.to(dtype), absorbed_key)
        scores = scores.to(torch.promote_types(dtype, torch.float32))
        return scores.clamp(-MAX_SCORE, MAX_SCORE).unflatten(2, (self.num_heads, num_tokens))

    def _read_words(self, scores: Tensor, language: Tensor, mask: Tensor) -> Tensor:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        attention = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        value = self._split_heads(self.language_value(language))
        out_weight = self.visual_out.weight.view(-1, self.num_heads, self.head_dim)  # (C, H, d)
        absorbed_value = torch.einsum("nthd,chd->nhtc", value, out_weight).flatten(1, 2)
        return attention.flatten(2).to(value.dtype) @ absorbed_value + self.visual_out.bias

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class WordAttention(_AbsorbedAttention):
    """Every position reads the words (the text -> image half)."""

    def forward(self, visual: Tensor, language: Tensor, mask: Tensor) -> Tensor:
        """What the words tell each position.

        Args:
            visual: (N, P, C).
            language: (N, T, D).
            mask: (N, T) bool, the valid tokens; padding is hidden from the image.

        Returns:
            (N, P, C).
        """
        return self._read_words(self._scores(visual, language), language, mask)


class BiAttention(_AbsorbedAttention):
    """Both directions over one matrix of scores."""

    def __init__(self, *, visual_dim: int, language_dim: int, attention_dim: int, **kwargs: Any):
        super().__init__(
            visual_dim=visual_dim, language_dim=language_dim, attention_dim=attention_dim, **kwargs
        )
        self.visual_value = _linear(visual_dim, attention_dim)
        self.language_out = _linear(attention_dim, language_dim)

    def forward(self, visual: Tensor, language: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the words tell each position, and the positions each word.

        Arguments as of :meth:`WordAttention.forward`. All positions take part, padded image area
        too.

        Returns:
            (N, P, C) and (N, T, D).
        """
        scores = self._scores(visual, language)
        return self._read_words(scores, language, mask), self._read_positions(scores, visual)

    def _read_positions(self, scores: Tensor, visual: Tensor) -> Tensor:
        num_tokens = scores.shape[-1]
        attention = F.dropout(scores.softmax(dim=1), self.dropout, self.training)
        read = attention.flatten(2).transpose(1, 2) @ visual.to(attention.dtype)  # (N, H T, C)
        read = read.unflatten(1, (self.num_heads, num_tokens))
        value_weight = self.visual_value.weight.view(self.num_heads, self.head_dim, -1)
        value_bias = self.visual_value.bias.view(self.num_heads, self.head_dim)
        value = torch.einsum("nhtc,hdc->nthd", read, value_weight)
        # The bias is read as often as a word's weights sum to: once, unless dropout changed it.
        weight_sums = attention.sum(dim=1).transpose(1, 2)  # (N, T, H)
        value = value + weight_sums[..., None].to(value.dtype) * value_bias
        return self.language_out(value.flatten(2))


class BiAttentionFusion(nn.Module):
    """Image and text read each other, on top of their *normalised* selves.

    As in the reference, the residual starts from the layer-normed tensors, not from the inputs
    (GLIP spec 7.7). A learned factor per channel scales what was read.
    """

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention: nn.Module,
        layer_scale: float,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention: called as :class:`BiAttention` is.
            layer_scale: what the learned factors start at.
        """
        super().__init__()
        self.norm_visual = nn.LayerNorm(visual_dim)
        self.norm_language = nn.LayerNorm(language_dim)
        self.attention = attention
        self.gamma_visual = nn.Parameter(torch.full((visual_dim,), layer_scale))
        self.gamma_language = nn.Parameter(torch.full((language_dim,), layer_scale))

    def forward(
        self, features: list[Tensor], language: LanguageFeatures
    ) -> tuple[list[Tensor], LanguageFeatures]:
        """Fuse all levels at once. Shapes stay: per level (N, C, H, W), and (N, T, D)."""
        visual = self.norm_visual(flatten_levels(features))
        hidden = self.norm_language(language.hidden)
        visual_update, language_update = self.attention(visual, hidden, language.mask)
        visual = visual + self.gamma_visual * visual_update
        hidden = hidden + self.gamma_language * language_update
        return unflatten_levels(visual, features), LanguageFeatures(hidden, language.mask)


class WordFusion(nn.Module):
    """The image reads the text, on top of its normalised self; the text stays as it is."""

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention: nn.Module,
        layer_scale: float,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention: called as :class:`WordAttention` is.
            layer_scale: what the learned factors start at.
        """
        super().__init__()
        self.norm_visual = nn.LayerNorm(visual_dim)
        self.norm_language = nn.LayerNorm(language_dim)
        self.attention = attention
        self.gamma_visual = nn.Parameter(torch.full((visual_dim,), layer_scale))

    def forward(
        self, features: list[Tensor], language: LanguageFeatures
    ) -> tuple[list[Tensor], LanguageFeatures]:
        """Fuse all levels at once. Shapes stay: per level (N, C, H, W), and (N, T, D)."""
        visual = self.norm_visual(flatten_levels(features))
        update = self.attention(visual, self.norm_language(language.hidden), language.mask)
        return unflatten_levels(visual + self.gamma_visual * update, features), language


def flatten_levels(features: list[Tensor]) -> Tensor:
    """Per level (N, C, H_i, W_i) -> (N, P, C), levels one after the other, row-major."""
    return torch.cat([level.flatten(2) for level in features], dim=2).transpose(1, 2)


def unflatten_levels(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten_levels`, with the sizes of ``like``."""
    sizes = [level.shape[-2] * level.shape[-1] for level in like]
    return [
        part.transpose(1, 2).unflatten(2, level.shape[-2:])
        for part, level in zip(flat.split(sizes, dim=1), like, strict=True)
    ]
