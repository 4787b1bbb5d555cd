"""Bi-directional attention between all image positions and all words (GLIP's X-MHA).

N: images. P: positions of all levels. T: tokens. C, D: widths of image and text. H: heads, of
width d each; the attention runs in H d dimensions (2048 in the released models).

**Absorbed form.** The textbook order projects all P positions to H d channels three times. As there
are few tokens, the same numbers come cheaper by regrouping the products (exact algebra):

- scores  (x Wq)(l Wk)^T = x (Wq K^T): keys are projected down to C, per head and token;
- text -> image  softmax(S) V Wo = softmax(S) (V Wo): values are projected out before the sum;
- image -> text  A^T (x Wv) = (A^T x) Wv: positions are summed before they are projected.

No activation of P x H d ever exists, and of the P x H T scores only some at a time
(:mod:`~glipv2_d2.modeling.fusion.banded_attention`).

What the words tell a position is added to it by the product that computes it: the learned factors
per channel scale the values of the few words and not the many positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.fusion.banded_attention import AbsorbedWords, ReadByWords, attend
from glipv2_d2.structures import TextFeatures

# On a CPU torch's softmax takes rows that are shorter than a vector one number at a time, which
# costs ten times as much as a few padded tokens.
MIN_TOKENS = 16


def _lowest_where(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, torch.finfo(dtype).min)


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

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout > 0

    @property
    def _scale_of_left(self) -> float:
        """What dropout leaves counts for what it drops."""
        return 1 / (1 - self.dropout) if self._drops else 1.0

    def _attend(
        self, visual: Tensor, words: AbsorbedWords, *, words_read: bool
    ) -> tuple[Tensor, ReadByWords | None]:
        dropout = self.dropout if self._drops else 0.0
        return attend(visual, words, words_read=words_read, dropout=dropout)

    def _absorb(self, language: Tensor, mask: Tensor, scale: Tensor) -> AbsorbedWords:
        words = self._absorb_keys(language)
        value = self._split_heads(self.language_value(language))
        out_weight = self.visual_out.weight.view(-1, self.num_heads, self.head_dim)  # (C, H, d)
        value = torch.einsum("nthd,chd->nhtc", value, out_weight).flatten(1, 2)
        value = value * (scale * self._scale_of_left)
        if not self._drops:
            # Every value has its part of the bias, as the weights of each head have the sum 1.
            value = value + scale * self.visual_out.bias / self.num_heads
        # Added to scores, as masked_fill takes several times as long on a CPU.
        dtype = torch.promote_types(words.key.dtype, torch.float32)
        hiding = _lowest_where(~mask[:, None, None], dtype)
        return replace(words, value=value.to(words.key.dtype), hiding=hiding)

    def _absorb_keys(self, language: Tensor) -> AbsorbedWords:
        """Without values."""
        key = self._split_heads(self.language_key(language)) * self.head_dim**-0.5  # (N, T, H, d)
        query_weight = self.visual_query.weight.view(self.num_heads, self.head_dim, -1)  # (H, d, C)
        query_bias = self.visual_query.bias.view(self.num_heads, self.head_dim)
        absorbed_key = torch.einsum("nthd,hdc->ncht", key, query_weight).flatten(2)
        constant = torch.einsum("nthd,hd->nht", key, query_bias).flatten(1)[:, None]
        return AbsorbedWords(self.num_heads, absorbed_key, constant.to(absorbed_key.dtype))

    def _with_bias(self, positions: Tensor, scale: Tensor) -> Tensor:
        """Where dropout drops weights, which then have no fixed sum, the bias comes by itself."""
        return positions + scale * self.visual_out.bias if self._drops else positions

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class WordAttention(_AbsorbedAttention):
    """Every position reads the words (the text -> image half)."""

    def forward(self, visual: Tensor, language: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        """Add to each position what the words tell it.

        Args:
            visual: (N, P, C); where no gradient is asked for, it may be written into.
            language: (N, T, D).
            mask: (N, T) bool, the valid tokens; padding is hidden from the image.
            scale: (C,), factors of what is added.

        Returns:
            (N, P, C).
        """
        words = self._absorb(*pad_words(language, mask), scale)
        positions, _ = self._attend(visual, words, words_read=False)
        return self._with_bias(positions, scale)


class BiAttention(_AbsorbedAttention):
    """Both directions over one matrix of scores."""

    def __init__(self, *, visual_dim: int, language_dim: int, attention_dim: int, **kwargs: Any):
        super().__init__(
            visual_dim=visual_dim, language_dim=language_dim, attention_dim=attention_dim, **kwargs
        )
        self.visual_value = _linear(visual_dim, attention_dim)
        self.language_out = _linear(attention_dim, language_dim)

    def forward(
        self, visual: Tensor, language: Tensor, mask: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add to each position what the words tell it; and what the positions tell each word.

        Arguments as of :meth:`WordAttention.forward`. All positions take part, padded image area
        too.

        Returns:
            (N, P, C), the sums, and (N, T, D), unscaled and not added to anything.
        """
        words = self._absorb(*pad_words(language, mask), scale)
        positions, read = self._attend(visual, words, words_read=True)
        return self._with_bias(positions, scale), self._project(read)[:, : language.shape[1]]

    def read_image(self, visual: Tensor, language: Tensor) -> Tensor:
        """What the positions tell each word; the words alone, each for itself.

        Args:
            visual: (N, P, C).
            language: (N, T, D).

        Returns:
            (N, T, D).
        """
        _, read = self._attend(visual, self._absorb_keys(language), words_read=True)
        return self._project(read)

    def _project(self, read: ReadByWords | None) -> Tensor:
        assert read is not None
        means = read.means.unflatten(1, (self.num_heads, -1)) * self._scale_of_left
        value_weight = self.visual_value.weight.view(self.num_heads, self.head_dim, -1)
        value_bias = self.visual_value.bias.view(self.num_heads, self.head_dim)
        value = torch.einsum("nhtc,hdc->nthd", means, value_weight)
        # The bias is read as often as a word's weights sum to: once, unless dropout changed it.
        kept = read.kept.unflatten(1, (self.num_heads, -1)) * self._scale_of_left
        value = value + kept.transpose(1, 2)[..., None].to(value.dtype) * value_bias
        return self.language_out(value.flatten(2))


class EvidentBiAttention(BiAttention):
    """Words also learn how well the best positions matched them.

    The softmax over positions says which of them match a word best, but not whether any does; what
    tells "is there a dog?" is lost. Here each head's logarithm of the sum of exp(score), a soft
    maximum, is projected and added, from zeros to start with. Our choice.
    """

    def __init__(self, *, language_dim: int, num_heads: int, **kwargs: Any) -> None:
        """Arguments as of :class:`BiAttention`."""
        super().__init__(language_dim=language_dim, num_heads=num_heads, **kwargs)
        self.evidence = nn.Linear(num_heads, language_dim)
        for parameter in self.evidence.parameters():
            nn.init.zeros_(parameter)

    def _project(self, read: ReadByWords | None) -> Tensor:
        assert read is not None
        matched = read.evidence.unflatten(1, (self.num_heads, -1)).transpose(1, 2)  # (N, T, H)
        return super()._project(read) + self.evidence(matched)


class WordFusion(nn.Module):
    """The image reads the text, on top of its *normalised* self; the text stays as it is.

    As in the reference, the residual starts from the layer-normed tensor, not from the input
    (GLIP spec 7.7). A learned factor per channel scales what was read. Causal words are not read:
    the image would tell them what comes after them.
    """

    attention: Any

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
        self, features: list[Tensor], language: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        """Fuse all levels at once. Shapes stay: per level (N, C, H, W), and (N, T, D)."""
        if language.causal:
            return unflatten_levels(self.look(features), features), language
        visual, hidden = self._normalise(features, language)
        visual = self.attention(visual, hidden, language.mask, self.gamma_visual)
        return unflatten_levels(visual, features), language

    def look(self, features: list[Tensor]) -> Tensor:
        """(N, P, C), the positions of all levels as words read them."""
        return self.norm_visual(flatten_levels(features))

    def _normalise(self, features: list[Tensor], language: TextFeatures) -> tuple[Tensor, Tensor]:
        return self.look(features), self.norm_language(language.hidden)


class BiAttentionFusion(WordFusion):
    """Image and text read each other, both on top of their normalised selves."""

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention: nn.Module,
        layer_scale: float,
    ) -> None:
        """Arguments as of :class:`WordFusion`; ``attention`` is called as :class:`BiAttention`."""
        super().__init__(
            visual_dim=visual_dim,
            language_dim=language_dim,
            attention=attention,
            layer_scale=layer_scale,
        )
        self.gamma_language = nn.Parameter(torch.full((language_dim,), layer_scale))

    def forward(
        self, features: list[Tensor], language: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        """Fuse all levels at once. Shapes stay: per level (N, C, H, W), and (N, T, D)."""
        if language.causal:
            visual = self.look(features)
            hidden = self.read_image(visual, language.hidden)
            return unflatten_levels(visual, features), replace(language, hidden=hidden)
        visual, hidden = self._normalise(features, language)
        visual, update = self.attention(visual, hidden, language.mask, self.gamma_visual)
        hidden = torch.addcmul(hidden, self.gamma_language, update)
        return unflatten_levels(visual, features), replace(language, hidden=hidden)

    def read_image(self, visual: Tensor, hidden: Tensor) -> Tensor:
        """(N, T, D) words that have read (N, P, C) positions, of :meth:`look`."""
        hidden = self.norm_language(hidden)
        return torch.addcmul(hidden, self.gamma_language, self.attention.read_image(visual, hidden))


def pad_words(language: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T, D) features and (N, T) mask with padded tokens up to ``MIN_TOKENS``."""
    missing = max(0, MIN_TOKENS - language.shape[1])
    return F.pad(language, (0, 0, 0, missing)), F.pad(mask, (0, missing))


def flatten_levels(features: list[Tensor]) -> Tensor:
    """Per level (N, C, H_i, W_i) -> (N, P, C), levels one after the other, row-major."""
    # Transposed before they are joined: the result is contiguous, and channels-last levels, as
    # unflatten_levels gives them, are copied in one piece each.
    return torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)


def unflatten_levels(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten_levels`, with the sizes of ``like``."""
    sizes = [level.shape[-2] * level.shape[-1] for level in like]
    return [
        part.transpose(1, 2).unflatten(2, level.shape[-2:])
        for part, level in zip(flat.split(sizes, dim=1), like, strict=True)
    ]
