"""The heads between the pyramid and the predictions: with and without fusion."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glipv2_d2.modeling.fusion.bi_attention import (
    BiAttention,
    BiAttentionFusion,
    WordAttention,
    WordFusion,
)
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.dynamic_conv import DynamicConv
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.structures import LanguageFeatures


class FusedBlock(nn.Module):
    """Image and text read each other, words read words, levels read levels."""

    def __init__(
        self, *, fusion: nn.Module, language_layer: nn.Module, dynamic_conv: nn.Module
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.language_layer = language_layer
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], language: LanguageFeatures
    ) -> tuple[list[Tensor], LanguageFeatures]:
        features, language = self.fusion(features, language)
        language = self.language_layer(language)
        return self.dynamic_conv(features), language


class UnfusedBlock(nn.Module):
    """Levels read levels; the text passes by."""

    def __init__(self, *, dynamic_conv: nn.Module) -> None:
        super().__init__()
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], language: LanguageFeatures
    ) -> tuple[list[Tensor], LanguageFeatures]:
        return self.dynamic_conv(features), language


class BlockHead(nn.Module):
    """A stack of blocks over a pyramid and a prompt; both heads are one."""

    def __init__(self, *, blocks: list[nn.Module], activation_checkpointing: bool = False) -> None:
        """
        Args:
            blocks: modules that map (features per level, language) to the same.
            activation_checkpointing: recompute each block in the backward pass.
        """
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self, features: dict[str, Tensor], language: LanguageFeatures
    ) -> tuple[dict[str, Tensor], LanguageFeatures]:
        """Fuse a pyramid (finest level first, (N, C, H_i, W_i) each) with a prompt per image.

        Returns:
            features and language of the same shapes; the inputs stay as they are.
        """
        per_level = list(features.values())
        for block in self.blocks:
            if self.training and self.activation_checkpointing:
                per_level, language = checkpoint(block, per_level, language, use_reentrant=False)
            else:
                per_level, language = block(per_level, language)
        return dict(zip(features, per_level, strict=True)), language


@FUSED_HEAD_REGISTRY.register()
class FusedDynamicHead(BlockHead):
    """GLIP-T, GLIP-L and GLIPv2: fusion, language layer and DyConv in every block."""

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
        language_heads: int,
        language_ffn_dim: int,
        language_dropout: float,
        activation_checkpointing: bool = False,
    ) -> None:
        blocks: list[nn.Module] = [
            FusedBlock(
                fusion=BiAttentionFusion(
                    visual_dim=visual_dim,
                    language_dim=language_dim,
                    attention=BiAttention(
                        visual_dim=visual_dim,
                        language_dim=language_dim,
                        attention_dim=fusion_dim,
                        num_heads=fusion_heads,
                        dropout=fusion_dropout,
                    ),
                    layer_scale=1 / num_blocks,
                ),
                language_layer=LanguageLayer(
                    dim=language_dim,
                    num_heads=language_heads,
                    ffn_dim=language_ffn_dim,
                    dropout=language_dropout,
                ),
                dynamic_conv=DynamicConv(channels=visual_dim, num_groups=num_groups),
            )
            for _ in range(num_blocks)
        ]
        super().__init__(blocks=blocks, activation_checkpointing=activation_checkpointing)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
    ) -> dict[str, Any]:
        head = cfg.MODEL.FUSED_HEAD
        return {
            **_common_arguments(cfg, input_shape),
            "language_dim": language_width,
            "fusion_dim": head.FUSION_DIM,
            "fusion_heads": head.FUSION_HEADS,
            "fusion_dropout": head.FUSION_DROPOUT,
            "language_heads": head.LANGUAGE_HEADS,
            "language_ffn_dim": head.LANGUAGE_FFN_DIM,
            "language_dropout": head.LANGUAGE_DROPOUT,
        }


@FUSED_HEAD_REGISTRY.register()
class ImageFusedDynamicHead(BlockHead):
    """The image reads the words in every block; regions are scored against the words as they came.

    GLIP's code has this choice, too: fusion with USE_FUSED_FEATURES_DOT_PRODUCT off. A phrase then
    means the same whatever image and prompt it meets, which a small model learns much sooner.
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
    ) -> None:
        blocks: list[nn.Module] = [
            FusedBlock(
                fusion=WordFusion(
                    visual_dim=visual_dim,
                    language_dim=language_dim,
                    attention=WordAttention(
                        visual_dim=visual_dim,
                        language_dim=language_dim,
                        attention_dim=fusion_dim,
                        num_heads=fusion_heads,
                        dropout=fusion_dropout,
                    ),
                    layer_scale=1 / num_blocks,
                ),
                language_layer=nn.Identity(),
                dynamic_conv=DynamicConv(channels=visual_dim, num_groups=num_groups),
            )
            for _ in range(num_blocks)
        ]
        super().__init__(blocks=blocks, activation_checkpointing=activation_checkpointing)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
    ) -> dict[str, Any]:
        return {
            **_common_arguments(cfg, input_shape),
            "language_dim": language_width,
            "fusion_dim": cfg.MODEL.FUSED_HEAD.FUSION_DIM,
            "fusion_heads": cfg.MODEL.FUSED_HEAD.FUSION_HEADS,
            "fusion_dropout": cfg.MODEL.FUSED_HEAD.FUSION_DROPOUT,
        }


@FUSED_HEAD_REGISTRY.register()
class DynamicHead(BlockHead):
    """GLIP-A: DyConv only. Regions and words meet in the scores alone."""

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        num_blocks: int,
        num_groups: int,
        activation_checkpointing: bool = False,
    ) -> None:
        blocks: list[nn.Module] = [
            UnfusedBlock(dynamic_conv=DynamicConv(channels=visual_dim, num_groups=num_groups))
            for _ in range(num_blocks)
        ]
        super().__init__(blocks=blocks, activation_checkpointing=activation_checkpointing)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        language_width: int,  # noqa: ARG003 - the registry's call
    ) -> dict[str, Any]:
        return _common_arguments(cfg, input_shape)


def _common_arguments(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    channels = {shape.channels for shape in input_shape.values()}
    if len(channels) != 1:
        raise ValueError(f"the fused head needs levels of one width, got {sorted(channels)}")
    return {
        "visual_dim": channels.pop(),
        "num_blocks": cfg.MODEL.FUSED_HEAD.NUM_BLOCKS,
        "num_groups": cfg.MODEL.FUSED_HEAD.GROUP_NORM_GROUPS,
        "activation_checkpointing": cfg.MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING,
    }
