"""The dynamic heads between pyramid and predictions: with fusion (GLIP-T, L) and without (GLIP-A).

N: images. T: tokens. C, D: channels of image and text. P: positions of all levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.modeling.fusion.base import FusedHead
from glipv2_d2.modeling.fusion.bi_attention import BiAttention
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY
from glipv2_d2.modeling.fusion.dynamic_conv import DynamicConv
from glipv2_d2.modeling.fusion.fusion_layer import BiAttentionFusion, unflatten_levels
from glipv2_d2.modeling.fusion.language_layer import ClipLanguageLayer, LanguageLayer
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.structures import ImageFeatures, TextFeatures

T = TypeVar("T")

# Texts are grouped by image unless padding every image to the same number of texts makes more than
# this many times their number.
_MAX_PADDING = 1.5


class FusedBlock(nn.Module):
    """Bi-directional attention, a language layer on the text and DyConv on the pyramid."""

    def __init__(
        self,
        *,
        fusion: BiAttentionFusion,
        language_layer: LanguageLayer,
        dynamic_conv: DynamicConv,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.language_layer = language_layer
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], text: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        features, text = self.fusion(features, text)
        text = self.language_layer(text)
        return self.dynamic_conv(features), text

    def fuse_text(
        self, features: list[Tensor], text: TextFeatures, rows: list[int]
    ) -> TextFeatures:
        """The text output of :meth:`forward`; ``rows`` has the image of each text."""
        # Tokens attend to the positions independently of each other, so the texts of an image are
        # concatenated: (images, texts per image, T, D).
        num_texts: Counter[int] = Counter()
        slots = []
        for row in rows:
            slots.append(num_texts[row])
            num_texts[row] += 1
        texts_per_image = max(slots, default=0) + 1
        if len(features[0]) * texts_per_image > _MAX_PADDING * len(rows):
            features = [level[rows] for level in features]
            rows, slots, texts_per_image = list(range(len(rows))), [0] * len(rows), 1
        grouped = text.hidden.new_zeros(len(features[0]), texts_per_image, *text.hidden.shape[1:])
        grouped[rows, slots] = text.hidden
        visual = self.fusion.normalize_visual(features)
        fused = self.fusion.attend_text(visual, grouped.flatten(1, 2)).view_as(grouped)
        return self.language_layer(replace(text, hidden=fused[rows, slots]))


class UnfusedBlock(nn.Module):
    """DyConv on the pyramid. The text is returned as it is."""

    def __init__(self, *, dynamic_conv: DynamicConv) -> None:
        super().__init__()
        self.dynamic_conv = dynamic_conv

    def forward(
        self, features: list[Tensor], text: TextFeatures
    ) -> tuple[list[Tensor], TextFeatures]:
        return self.dynamic_conv(features), text


class BlockHead(FusedHead):
    """A fused head that is a stack of blocks."""

    def __init__(
        self,
        *,
        blocks: Sequence[nn.Module],
        activation_checkpointing: bool = False,
        score_fused_text: bool = True,
    ) -> None:
        """
        Args:
            blocks: modules that map (features per level, text) to the same.
            activation_checkpointing: recompute each block in the backward pass.
            score_fused_text: see :class:`FusedHead`.
        """
        super().__init__(score_fused_text=score_fused_text)
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures
    ) -> tuple[dict[str, Tensor], TextFeatures]:
        per_level = list(features.values())
        for block in self.blocks:
            per_level, text = self._run(block, per_level, text)
        return dict(zip(features, per_level, strict=True)), text

    def _run(self, function: Callable[..., T], features: list[Tensor], text: TextFeatures) -> T:
        """Call a block, or a part of it, with activation checkpointing if it is on."""
        if self.training and self.activation_checkpointing:
            return checkpoint(function, features, text, use_reentrant=False)
        return function(features, text)


@FUSED_HEAD_REGISTRY.register()
class FusedDynamicHead(BlockHead, Configurable):
    """The head of GLIP-T, GLIP-L and GLIPv2: a stack of :class:`FusedBlock`."""

    fuses_text: ClassVar[bool] = True
    config_keys: ClassVar[dict[str, str]] = {
        "fusion_dim": "MODEL.FUSED_HEAD.FUSION_DIM",
        "fusion_heads": "MODEL.FUSED_HEAD.FUSION_HEADS",
        "language_heads": "MODEL.FUSED_HEAD.LANGUAGE_HEADS",
    }

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
        attention_class: type[BiAttention] = BiAttention,
        language_layer_class: type[LanguageLayer] = LanguageLayer,
        activation_checkpointing: bool = False,
        score_fused_text: bool = True,
    ) -> None:
        """
        Args:
            visual_dim, language_dim: C and D.
            num_blocks: blocks in the stack.
            num_groups: groups of DyConv's group normalisation.
            fusion_dim, fusion_heads, fusion_dropout: of the bi-directional attention.
            language_heads, language_ffn_dim, language_dropout: of the language layers.
            attention_class: the bi-directional attention.
            language_layer_class: the language layers.
            activation_checkpointing: recompute each block in the backward pass.
            score_fused_text: see :class:`FusedHead`.

        Raises:
            ValueError: a width is not a multiple of its number of heads.
        """
        if fusion_dim % fusion_heads:
            raise ValueError(
                f"fusion_dim {fusion_dim} is not a multiple of fusion_heads {fusion_heads}"
            )
        if language_dim % language_heads:
            raise ValueError(
                f"language_dim {language_dim} is not a multiple of language_heads {language_heads}"
            )
        blocks = [
            FusedBlock(
                fusion=BiAttentionFusion(
                    visual_dim=visual_dim,
                    language_dim=language_dim,
                    attention=attention_class(
                        visual_dim=visual_dim,
                        language_dim=language_dim,
                        attention_dim=fusion_dim,
                        num_heads=fusion_heads,
                        dropout=fusion_dropout,
                    ),
                    layer_scale=1 / num_blocks,
                ),
                language_layer=language_layer_class(
                    dim=language_dim,
                    num_heads=language_heads,
                    ffn_dim=language_ffn_dim,
                    dropout=language_dropout,
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

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        head = cfg.MODEL.FUSED_HEAD
        return {
            **common_arguments(cfg, input_shape),
            "language_dim": language_dim,
            "fusion_dim": head.FUSION_DIM,
            "fusion_heads": head.FUSION_HEADS,
            "fusion_dropout": head.FUSION_DROPOUT,
            "language_heads": head.LANGUAGE_HEADS,
            "language_ffn_dim": head.LANGUAGE_FFN_DIM,
            "language_dropout": head.LANGUAGE_DROPOUT,
        }

    def fuse_text(self, features: ImageFeatures, text: TextFeatures) -> TextFeatures:
        """See :meth:`FusedHead.fuse_text`. DyConv of the last block is not computed."""
        *earlier, last = self._fused_blocks
        per_level, rows = list(features.levels.values()), features.rows
        if earlier:
            # In these blocks positions attend to the text, so each text needs its own maps.
            per_level = [level[rows] for level in per_level]
            rows = list(range(len(rows)))
        for block in earlier:
            per_level, text = self._run(block, per_level, text)
        return self._run(partial(last.fuse_text, rows=rows), per_level, text)

    def project_visual(self, features: dict[str, Tensor]) -> list[Tensor]:
        """See :meth:`FusedHead.project_visual`. The maps do not depend on causal text."""
        blocks = self._fused_blocks
        per_level, visual = list(features.values()), []
        for block in blocks:
            visual.append(block.fusion.normalize_visual(per_level))
            if len(visual) < len(blocks):
                per_level = block.dynamic_conv(unflatten_levels(visual[-1], per_level))
        return visual

    def decode_step(
        self, visual: Sequence[Tensor], hidden: Tensor, cache: Sequence[KVCache] | None
    ) -> tuple[Tensor, list[KVCache]]:
        """See :meth:`FusedHead.decode_step`."""
        next_cache = []
        for index, (block, positions) in enumerate(zip(self._fused_blocks, visual, strict=True)):
            # Tokens attend to the positions independently of each other, so the texts of an image
            # are concatenated.
            tokens = hidden.reshape(len(positions), -1, hidden.shape[-1])
            hidden = block.fusion.attend_text(positions, tokens).view_as(hidden)
            hidden, block_cache = block.language_layer.decode_step(
                hidden, cache[index] if cache else None
            )
            next_cache.append(block_cache)
        return hidden, next_cache

    @property
    def _fused_blocks(self) -> list[FusedBlock]:
        return cast("list[FusedBlock]", list(self.blocks))


@FUSED_HEAD_REGISTRY.register()
class ClipFusedDynamicHead(FusedDynamicHead):
    """:class:`FusedDynamicHead` with language layers of CLIP, for ``ClipLanguageBackbone``."""

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape, language_dim)
        return {**arguments, "language_layer_class": ClipLanguageLayer}


@FUSED_HEAD_REGISTRY.register()
class DynamicHead(BlockHead, Configurable):
    """The head of GLIP-A: DyConv only. Image and text meet in the region-word scores."""

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        num_blocks: int,
        num_groups: int,
        activation_checkpointing: bool = False,
        score_fused_text: bool = True,
    ) -> None:
        """Arguments as of :class:`FusedDynamicHead`."""
        blocks = [
            UnfusedBlock(dynamic_conv=DynamicConv(channels=visual_dim, num_groups=num_groups))
            for _ in range(num_blocks)
        ]
        super().__init__(
            blocks=blocks,
            activation_checkpointing=activation_checkpointing,
            score_fused_text=score_fused_text,
        )

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        language_dim: int,  # noqa: ARG003 - the registry's call
    ) -> dict[str, Any]:
        return common_arguments(cfg, input_shape)


def common_arguments(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    """Constructor arguments that all dynamic heads take from the config.

    Raises:
        ValueError: the levels of the pyramid differ in their channels.
    """
    channels = {shape.channels for shape in input_shape.values()}
    if len(channels) != 1:
        raise ValueError(
            f"all levels must have the same number of channels, got {sorted(channels)}"
        )
    return {
        "visual_dim": channels.pop(),
        "num_blocks": cfg.MODEL.FUSED_HEAD.NUM_BLOCKS,
        "num_groups": cfg.MODEL.FUSED_HEAD.GROUP_NORM_GROUPS,
        "activation_checkpointing": cfg.MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING,
        "score_fused_text": cfg.MODEL.GROUNDING.SCORE_FUSED_TEXT,
    }
