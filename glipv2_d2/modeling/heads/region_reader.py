"""Words that answer or describe read the regions of their image as if these were words, too.

N: images or texts. R: regions of an image. T: tokens. C: channels of the maps. D: width
of the words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.modeling.losses.precision import full_precision
from glipv2_d2.modeling.past import Past
from glipv2_d2.modeling.regions import RegionFinder, build_region_finder
from glipv2_d2.structures import LanguageFeatures, Regions

REGION_READER_REGISTRY = Registry("REGION_READER")
REGION_READER_REGISTRY.__doc__ = """
Region readers: ``obj(cfg, input_shape, language_width)`` gives a module that is called as
:class:`RegionReader` is.
"""

_PLACE_DIM = 64


@REGION_READER_REGISTRY.register()
class RegionReader(nn.Module):
    """Layers of a text encoder over the regions of an image and the words of a text.

    The tower's words have read its maps location by location; here they meet whole things, few
    enough to be told apart, counted and compared. A region is written as a word: the sum of what
    its features and its place say. Our choice: GLIPv2 pools the tower's words as they are.
    """

    # Called by more names than nn.Module's annotations know.
    layers: Any

    @configurable
    def __init__(
        self,
        *,
        finder: RegionFinder,
        visual_dim: int,
        language_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        """
        Args:
            finder: finds the regions.
            visual_dim: C.
            language_dim: D.
            num_heads, ffn_dim, dropout: of every layer.
        """
        super().__init__()
        self.finder = finder
        self.visual_dim = visual_dim
        self.feature_norm = nn.LayerNorm(visual_dim)
        self.fused_norm = nn.LayerNorm(visual_dim)
        self.feature = nn.Linear(2 * visual_dim, language_dim)
        self.place = nn.Sequential(
            nn.Linear(5, _PLACE_DIM), nn.GELU(), nn.Linear(_PLACE_DIM, language_dim)
        )
        self.norm = nn.LayerNorm(language_dim)
        self.layers = nn.ModuleList(
            LanguageLayer(dim=language_dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        for layer in self.layers:
            _like_reads_like(layer)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
    ) -> dict[str, Any]:
        settings = cfg.MODEL.REGION_READER
        return {
            "finder": build_region_finder(cfg, input_shape),
            "visual_dim": next(iter(input_shape.values())).channels,
            "language_dim": language_width,
            "num_layers": settings.NUM_LAYERS,
            "num_heads": settings.HEADS,
            "ffn_dim": settings.FFN_DIM,
            "dropout": settings.DROPOUT,
        }

    def forward(self, words: LanguageFeatures, regions: Regions) -> LanguageFeatures:
        """The words of N texts, each after it has read the regions of its image, (N, T, D).

        Regions read no word of a text that is read from left to right, so that what is read once
        of an image stays true while its caption grows.
        """
        if words.causal:
            hidden, _ = self.read_on(words.hidden, self.look(regions))
            return replace(words, hidden=hidden)
        seen = self.as_words(regions)
        num_regions = seen.shape[1]
        is_read = torch.cat([words.mask.new_ones(seen.shape[:2]), words.mask], dim=1)
        both = LanguageFeatures(torch.cat([seen, words.hidden.to(seen)], dim=1), is_read)
        for layer in self.layers:
            both = layer(both)
        return replace(words, hidden=both.hidden[:, num_regions:])

    def look(self, regions: Regions) -> list[Past]:
        """Per layer, what texts that are read from left to right read of N images."""
        seen = self.as_words(regions)
        is_read = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        looks = []
        for layer in self.layers:
            read, past = layer.look(LanguageFeatures(seen, is_read))
            seen = read.hidden
            looks.append(past)
        return looks

    def read_on(self, hidden: Tensor, past: Sequence[Past]) -> tuple[Tensor, list[Past]]:
        """(N, T, D) further words of texts that are read from left to right.

        Args:
            past: per layer, of :meth:`look` or of the words before these.

        Returns:
            (N, T, D), and per layer what it keeps.
        """
        kept_per_layer = []
        for layer, own in zip(self.layers, past, strict=True):
            hidden, kept = layer.read_on(hidden, own)
            kept_per_layer.append(kept)
        return hidden, kept_per_layer

    def as_words(self, regions: Regions) -> Tensor:
        """(N, R, D), in at least float32."""
        with torch.autocast(regions.places.device.type, enabled=False):
            return self.norm(self.said(regions))

    def said(self, regions: Regions) -> Tensor:
        """(N, R, D), what features and places say together."""
        features = self.feature_norm(self.visual(full_precision(regions.features)))
        fused = self.fused_norm(self.visual(full_precision(regions.fused_features)))
        places = _centred(full_precision(regions.places))
        return self.feature(torch.cat([features, fused], dim=-1)) + self.place(places)

    def visual(self, features: Tensor) -> Tensor:
        """The channels that are read as features."""
        return features


@REGION_READER_REGISTRY.register()
class ClassifierRegionReader(RegionReader):
    """A :class:`RegionReader` of a pyramid whose last D channels are words (glipv2-mini).

    A region is first of all the word that the classifier sees there.
    """

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
    ) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape, language_width)
        visual_dim = arguments["visual_dim"] - language_width
        if visual_dim <= 0:
            raise ValueError(
                f"the levels have {arguments['visual_dim']} channels, no more than the "
                f"{language_width} of a word: MODEL.REGION_READER.NAME {cls.__name__} needs "
                "MODEL.BACKBONE.NAME build_timm_classifier_fpn_backbone"
            )
        return {**arguments, "visual_dim": visual_dim}

    def said(self, regions: Regions) -> Tensor:
        seen = full_precision(regions.features)[..., self.visual_dim :]
        # As long as a phrase of the language backbone.
        seen = F.normalize(seen, dim=-1) * math.sqrt(seen.shape[-1])
        return seen + super().said(regions)

    def visual(self, features: Tensor) -> Tensor:
        return features[..., : self.visual_dim]


def build_region_reader(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_width: int
) -> nn.Module | None:
    """The reader of ``cfg.MODEL.REGION_READER``; None where nothing is said or it has no name."""
    name = cfg.MODEL.REGION_READER.NAME
    says_words = cfg.MODEL.ANSWER.WEIGHT != 0 or cfg.MODEL.CAPTION.WEIGHT != 0
    if not name or not says_words:
        return None
    return REGION_READER_REGISTRY.get(name)(cfg, input_shape, language_width)


def _like_reads_like(layer: LanguageLayer) -> None:
    """Let a layer begin with attention to what is alike: a name to the region that shows it.

    Queries and keys of equal weights compare what they are made of; those drawn apart compare
    nothing, and that a word and a region are alike would have to be found out first.
    """
    nn.init.orthogonal_(layer.query.weight)
    with torch.no_grad():
        layer.key.weight.copy_(layer.query.weight)


def _centred(places: Tensor) -> Tensor:
    """Places from -1 to 1, sizes and score as they are."""
    return torch.cat([places[..., :2] * 2 - 1, places[..., 2:]], dim=-1)
