"""Text-to-image fusion, and attention with a logsumexp encoding.

N: images. P: positions of all levels. T: tokens. C, D: channels of image and text. H: heads.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.bi_attention import (
    TextToImageProjections,
    absorb_text,
    add_output_bias,
    bi_attention_context,
    pad_tokens,
    project_context,
    text_context,
)
from glipv2_d2.layers.blockwise_attention import TextContext, blockwise_attention
from glipv2_d2.modeling.fusion.bi_attention import BiAttention, xavier_linear
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.dynamic_conv import DynamicConv
from glipv2_d2.modeling.fusion.fused_head import BlockHead, common_arguments
from glipv2_d2.modeling.fusion.fusion_layer import flatten_levels, unflatten_levels
from glipv2_d2.structures import TextFeatures


class TextToImageAttention(nn.Module):
    """Attention from positions to tokens: one direction of :class:`BiAttention`."""

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention_dim: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        """Arguments and errors as of :class:`BiAttention`."""
        super().__init__()
        if attention_dim % num_heads:
            raise ValueError(
                f"attention_dim {attention_dim} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.visual_query = xavier_linear(visual_dim, attention_dim)
        self.language_key = xavier_linear(language_dim, attention_dim)
        self.language_value = xavier_linear(language_dim, attention_dim)
        self.visual_out = xavier_linear(attention_dim, visual_dim)

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor, visual_scale: Tensor
    ) -> Tensor:
        """The first result of :func:`~glipv2_d2.modeling.fusion.bi_attention.bi_attention`."""
        dropout = self.dropout if self.training else 0.0
        projections = TextToImageProjections(
            num_heads=self.num_heads,
            visual_query=self.visual_query,
            language_key=self.language_key,
            language_value=self.language_value,
            visual_out=self.visual_out,
        )
        absorbed = absorb_text(*pad_tokens(text, text_mask), visual_scale, projections, dropout)
        visual, _ = blockwise_attention(visual, absorbed, image_to_text=False, dropout=dropout)
        return add_output_bias(visual, visual_scale, projections, dropout)


class TextToImageFusion(nn.Module):
    """Text-to-image attention on layer-normed inputs. The text is returned as it is.

    A learned factor per channel scales the update. Positions do not attend to causal text, because
    they would pass information about later tokens to earlier ones.
    """

    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        attention: TextToImageAttention,
        layer_scale: float,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            attention: updates the positions.
            layer_scale: initial value of the learned factors.
        """
        super().__init__()
        self.norm_visual = nn.LayerNorm(visual_dim)
        self.norm_language = nn.LayerNorm(language_dim)
        self.attention = attention
        self.gamma_visual = nn.Parameter(torch.full((visual_dim,), layer_scale))

    def forward(
        self, features: list[Tensor], text: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        """Fuse all levels, (N, C, H_i, W_i) each, with (N, T, D) text. Shapes stay the same."""
        visual = self.norm_visual(flatten_levels(features))
        if not text.causal:
            hidden = self.norm_language(text.hidden)
            visual = self.attention(visual, hidden, text.mask, self.gamma_visual)
        return unflatten_levels(visual, features), text


class ImageFusedBlock(nn.Module):
    """Text-to-image attention, then DyConv on the pyramid."""

    def __init__(self, *, fusion: TextToImageFusion, dynamic_conv: DynamicConv) -> None:
        super().__init__()
        self.fusion = fusion
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], text: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        features, text = self.fusion(features, text)
        return self.dynamic_conv(features), text


@FUSED_HEAD_REGISTRY.register()
class ImageFusedDynamicHead(BlockHead, Configurable):
    """A stack of :class:`ImageFusedBlock`: positions attend to the text, which stays as it is.

    Regions are scored against the text features of the language backbone, as in GLIP with
    USE_FUSED_FEATURES_DOT_PRODUCT off. The embedding of a phrase then does not depend on image and
    prompt, which a small model fits in fewer steps.
    """

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        num_blocks: int,
        num_groups: int,
        fusion_dim: int,
        fusion_heads: int,
        fusion_dropout: float,
        activation_checkpointing: bool = False,
        score_fused_text: bool = True,
    ) -> None:
        """Arguments as of :class:`~glipv2_d2.modeling.fusion.fused_head.FusedDynamicHead`."""
        blocks = [
            ImageFusedBlock(
                fusion=TextToImageFusion(
                    visual_dim=visual_dim,
                    language_dim=language_dim,
                    attention=TextToImageAttention(
                        visual_dim=visual_dim,
                        language_dim=language_dim,
                        attention_dim=fusion_dim,
                        num_heads=fusion_heads,
                        dropout=fusion_dropout,
                    ),
                    layer_scale=1 / num_blocks,
                ),
                dynamic_conv=DynamicConv(channels=visual_dim, num_groups=num_groups),
            )
            for _ in range(num_blocks)
        ]
        super().__init__(
            blocks=blocks,
            activation_checkpointing=activation_checkpointing,
            score_fused_text=score_fused_text,
        )
        self.visual_dim = visual_dim

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        return {
            **common_arguments(cfg, input_shape),
            "language_dim": language_dim,
            "fusion_dim": cfg.MODEL.FUSED_HEAD.FUSION_DIM,
            "fusion_heads": cfg.MODEL.FUSED_HEAD.FUSION_HEADS,
            "fusion_dropout": cfg.MODEL.FUSED_HEAD.FUSION_DROPOUT,
        }


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
