"""Bi-directional attention with an encoding of how well each token matches the image.

N: images. P: positions of all levels. T: tokens. C, D: channels of image and text. H: heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from glipv2_d2.layers.bi_attention import (
    bi_attention_context,
    project_context,
    text_context,
)
from glipv2_d2.layers.blockwise_attention import TextContext
from glipv2_d2.modeling.fusion.bi_attention import BiAttention


class LogSumExpBiAttention(BiAttention):
    """Bi-directional attention that also embeds how well each token matches the image.

    Softmax over the positions selects the best matches of a token, but loses whether any position
    matches it at all, which questions such as "is there a dog?" need. The logsumexp of each head's
    scores, a soft maximum, is projected and added to the text. The projection is initialised to
    zero. Our choice.
    """

    def __init__(self, *, language_dim: int, num_heads: int, **kwargs: Any) -> None:
        """Arguments as of :class:`BiAttention`."""
        super().__init__(language_dim=language_dim, num_heads=num_heads, **kwargs)
        self.logsumexp_projection = nn.Linear(num_heads, language_dim)
        for parameter in self.logsumexp_projection.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, visual_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        visual, context = bi_attention_context(
            visual, text, text_mask, visual_scale, self.projections, self.active_dropout
        )
        return visual, self._project(context)[:, : text.shape[1]]

    def attend_text(self, visual: Tensor, text: Tensor) -> Tensor:
        return self._project(text_context(visual, text, self.projections, self.active_dropout))

    def _project(self, context: TextContext) -> Tensor:
        logsumexp = context.logsumexp.unflatten(1, (self.num_heads, -1)).transpose(1, 2)  # N, T, H
        update = project_context(context, self.projections, self.active_dropout)
        return update + self.logsumexp_projection(logsumexp)
