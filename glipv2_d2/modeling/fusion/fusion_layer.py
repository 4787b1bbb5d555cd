"""Fusion of a feature pyramid with text: normalisation, bi-directional attention, residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from glipv2_d2.modeling.fusion.bi_attention import BiAttention
from glipv2_d2.structures import TextFeatures


class BiAttentionFusion(nn.Module):
    """Bi-directional attention between all pyramid levels and the text.

    As in GLIP, the residual branch starts from the layer-normed tensors, not from the inputs
    (glip_reference.md 7.7). Learned factors per channel scale the updates.

    Positions do not attend to causal text, because they would pass information about later tokens
    to earlier ones. Its tokens still attend to the positions.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, attention: BiAttention, layer_scale: float
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention: updates positions and tokens.
            layer_scale: initial value of the learned factors.
        """
        super().__init__()
        self.norm_visual = nn.LayerNorm(visual_dim)
        self.norm_language = nn.LayerNorm(language_dim)
        self.attention = attention
        self.gamma_visual = nn.Parameter(torch.full((visual_dim,), layer_scale))
        self.gamma_language = nn.Parameter(torch.full((language_dim,), layer_scale))

    def forward(
        self, features: list[Tensor], text: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        """Fuse all levels, (N, C, H_i, W_i) each, with (N, T, D) text. Shapes stay the same."""
        visual = self.normalize_visual(features)
        if text.causal:
            hidden = self.attend_text(visual, text.hidden)
            return unflatten_levels(visual, features), replace(text, hidden=hidden)
        hidden = self.norm_language(text.hidden)
        visual, update = self.attention(visual, hidden, text.mask, self.gamma_visual)
        hidden = torch.addcmul(hidden, self.gamma_language, update)
        return unflatten_levels(visual, features), replace(text, hidden=hidden)

    def normalize_visual(self, features: list[Tensor]) -> Tensor:
        """Normalised positions of all levels, (N, P, C), as :meth:`attend_text` takes them."""
        return self.norm_visual(flatten_levels(features))

    def attend_text(self, visual: Tensor, hidden: Tensor) -> Tensor:
        """Update (N, T, D) tokens by attention to the (N, P, C) positions only."""
        hidden = self.norm_language(hidden)
        update = self.attention.attend_text(visual, hidden)
        return torch.addcmul(hidden, self.gamma_language, update)


def flatten_levels(features: Sequence[Tensor]) -> Tensor:
    """Per level (N, C, H_i, W_i) -> (N, P, C), level by level in row-major order."""
    # Transposed before concatenation: the result is contiguous, and channels-last levels, as
    # unflatten_levels returns them, are copied in one piece each.
    return torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)


def unflatten_levels(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten_levels`, with the sizes of ``like``."""
    sizes = [level.shape[-2] * level.shape[-1] for level in like]
    return [
        part.transpose(1, 2).unflatten(2, level.shape[-2:])
        for part, level in zip(flat.split(sizes, dim=1), like, strict=True)
    ]
