"""The heads between the pyramid and the predictions: with and without fusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
    unflatten_levels,
)
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.dynamic_conv import DynamicConv
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.structures import TextFeatures

# Texts are joined by image unless that makes more than so many times their number.
_MOST_PADDING = 1.5


class FusedBlock(nn.Module):
    """Image and text read each other, words read words, levels read levels."""

    # Parts with methods of their own, which nn.Module's annotations do not know.
    fusion: Any
    language_layer: Any
    dynamic_conv: Any

    def __init__(
        self, *, fusion: nn.Module, language_layer: nn.Module, dynamic_conv: nn.Module
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.language_layer = language_layer
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], language: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        features, language = self.fusion(features, language)
        language = self.language_layer(language)
        return self.dynamic_conv(features), language

    def words(
        self, features: list[Tensor], language: TextFeatures, image_of: Sequence[int]
    ) -> TextFeatures:
        """The words of :meth:`forward` alone; arguments as of :meth:`FusedDynamicHead.words`."""
        # As each word reads the image for itself, the texts of an image may be one text.
        seen: Counter[int] = Counter()
        turns = []
        for image in image_of:
            turns.append(seen[image])
            seen[image] += 1
        rows = list(image_of)
        num_texts = max(turns, default=0) + 1
        if len(features[0]) * num_texts > _MOST_PADDING * len(rows):
            features = [level[rows] for level in features]
            rows, turns, num_texts = list(range(len(rows))), [0] * len(rows), 1
        grouped = language.hidden.new_zeros(len(features[0]), num_texts, *language.hidden.shape[1:])
        grouped[rows, turns] = language.hidden
        read = self.fusion.read_image(self.fusion.look(features), grouped.flatten(1, 2))
        return self.language_layer(replace(language, hidden=read.view_as(grouped)[rows, turns]))


class UnfusedBlock(nn.Module):
    """Levels read levels; the text passes by."""

    def __init__(self, *, dynamic_conv: nn.Module) -> None:
        super().__init__()
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], language: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        return self.dynamic_conv(features), language


class BlockHead(nn.Module):
    """A stack of blocks over a pyramid and a prompt; both heads are one."""

    words_read_image = False
    """Whether fused words know the image; then there are :class:`FusedDynamicHead`'s methods."""

    blocks: Any

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
        self, features: dict[str, Tensor], language: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        """Fuse a pyramid (finest level first, (N, C, H_i, W_i) each) with a prompt per image.

        Returns:
            features and language of the same shapes; the inputs stay as they are.
        """
        per_level = list(features.values())
        for block in self.blocks:
            per_level, language = self._run(block, per_level, language)
        return dict(zip(features, per_level, strict=True)), language

    def _run(self, part: Callable, features: list[Tensor], language: TextFeatures) -> Any:
        if self.training and self.activation_checkpointing:
            return checkpoint(part, features, language, use_reentrant=False)
        return part(features, language)


@FUSED_HEAD_REGISTRY.register()
class FusedDynamicHead(BlockHead):
    """GLIP-T, GLIP-L and GLIPv2: fusion, language layer and DyConv in every block."""

    words_read_image = True
    attention_type: type[BiAttention] = BiAttention

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
                    attention=self.attention_type(
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
        self.visual_dim = visual_dim

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

    def words(
        self, features: dict[str, Tensor], language: TextFeatures, image_of: Sequence[int]
    ) -> TextFeatures:
        """The words of :meth:`forward` alone; the last maps, which no word reads, are not made.

        Args:
            features: of N images.
            language: (M, T, D).
            image_of: for each of the M texts, the number of the image that it reads.
        """
        *earlier, last = self.blocks
        per_level, texts_of = list(features.values()), list(image_of)
        if earlier:
            # There an image reads its text, so it is another one for each.
            per_level = [level[texts_of] for level in per_level]
            texts_of = list(range(len(texts_of)))
        for block in earlier:
            per_level, language = self._run(block, per_level, language)
        return self._run(partial(last.words, image_of=texts_of), per_level, language)

    def look(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Per block (N, P, C), what causal words read of N images; the image reads no words."""
        per_level, looks = list(features.values()), []
        for block in self.blocks:
            looks.append(block.fusion.look(per_level))
            if len(looks) < len(self.blocks):
                per_level = block.dynamic_conv(unflatten_levels(looks[-1], per_level))
        return looks

    def read_on(
        self, looks: Sequence[Tensor], hidden: Tensor, past: Sequence[KVCache] | None
    ) -> tuple[Tensor, list[KVCache]]:
        """Fuse further words of causal texts with their images.

        Args:
            looks: of N images, as :meth:`look` gives them.
            hidden: (N K, T, D), the same number K of texts per image, those of an image in a row.
            past: per block, what it kept of the words before these.

        Returns:
            (N K, T, D), and per block what it keeps.
        """
        kept_per_block = []
        for index, (block, look) in enumerate(zip(self.blocks, looks, strict=True)):
            # As each word reads the image for itself, those of all texts may be one text.
            words = hidden.reshape(len(look), -1, hidden.shape[-1])
            hidden = block.fusion.read_image(look, words).view_as(hidden)
            hidden, kept = block.language_layer.read_on(hidden, past[index] if past else None)
            kept_per_block.append(kept)
        return hidden, kept_per_block


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
        self.visual_dim = visual_dim

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
