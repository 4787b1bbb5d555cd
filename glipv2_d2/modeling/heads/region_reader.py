"""Words that answer or describe read the regions of their image as if these were words, too.

N: images or texts. R: regions of an image. T: tokens. A: names. C: channels of the maps. D: width
of the words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.text_vectors import TextVectors
from glipv2_d2.modeling.regions import RegionFinder, build_region_finder
from glipv2_d2.structures import Regions, TextFeatures
from glipv2_d2.text.answers import read_answers
from glipv2_d2.text.tokenizer import Tokenizer

REGION_READER_REGISTRY = Registry("REGION_READER")
REGION_READER_REGISTRY.__doc__ = """
Region readers: ``obj(cfg, input_shape, tokenizer, language_backbone)`` gives a module that is
called as :class:`RegionReader` is.
"""

_PLACE_DIM = 64
# How much sharper than the detector's own are its guesses at a region's name to start with: it
# judges every name alone, so among hundreds even the best has a small share.
_NAME_SHARPNESS = 4.0


@REGION_READER_REGISTRY.register()
class RegionReader(nn.Module):
    """Layers of a text encoder over the regions of an image and the words of a text.

    The tower's words have read its maps location by location; here they meet whole things, few
    enough to be told apart, counted and compared. A region is written as a word: the sum of what
    its features and its place say, and the names that it matches. Our choice: GLIPv2 pools the
    tower's words as they are.
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
        names: Callable[[], Tensor] | None = None,
        reads_matches: bool = True,
    ) -> None:
        """
        Args:
            finder: finds the regions.
            visual_dim: C.
            language_dim: D.
            num_heads, ffn_dim, dropout: of every layer.
            names: gives the (A, D) vectors of the names with which regions are compared; None:
                with none.
            reads_matches: words of questions learn which regions match them.
        """
        super().__init__()
        self.finder = finder
        self.names = names
        self.visual_dim = visual_dim
        self.matches = WordMatches(language_dim=language_dim) if reads_matches else None
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
        if names is not None:
            self.log_sharpness = nn.Parameter(torch.tensor(math.log(_NAME_SHARPNESS)))

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        tokenizer: Tokenizer,
        language_backbone: Any,
    ) -> dict[str, Any]:
        settings = cfg.MODEL.REGION_READER
        return {
            "finder": build_region_finder(cfg, input_shape),
            "visual_dim": next(iter(input_shape.values())).channels,
            "language_dim": language_backbone.width,
            "names": _names(cfg, tokenizer, language_backbone),
            # Captions do not read them, and every parameter is to learn.
            "reads_matches": cfg.MODEL.ANSWER.WEIGHT != 0,
            "num_layers": settings.NUM_LAYERS,
            "num_heads": settings.HEADS,
            "ffn_dim": settings.FFN_DIM,
            "dropout": settings.DROPOUT,
        }

    def forward(
        self, words: TextFeatures, regions: Regions, logits: Tensor | None = None
    ) -> TextFeatures:
        """The words of N texts, each after it has read the regions of its image, (N, T, D).

        Regions read no word of a text that is read from left to right, so that what is read once
        of an image stays true while its caption grows.

        Args:
            logits: (N, R, T) of regions and words, where texts are not read from left to right.
        """
        if words.causal:
            hidden, _ = self.read_on(words.hidden, self.look(regions))
            return replace(words, hidden=hidden)
        seen = self.as_words(regions)
        if logits is not None and self.matches is not None:
            words = self.matches(words, seen, logits, regions.is_found)
        num_regions = seen.shape[1]
        is_read = torch.cat([words.mask.new_ones(seen.shape[:2]), words.mask], dim=1)
        both = TextFeatures(torch.cat([seen, words.hidden.to(seen)], dim=1), is_read)
        for layer in self.layers:
            both = layer(both)
        return replace(words, hidden=both.hidden[:, num_regions:])

    def look(self, regions: Regions) -> list[KVCache]:
        """Per layer, what texts that are read from left to right read of N images."""
        seen = self.as_words(regions)
        is_read = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        looks = []
        for layer in self.layers:
            read, past = layer.look(TextFeatures(seen, is_read))
            seen = read.hidden
            looks.append(past)
        return looks

    def read_on(self, hidden: Tensor, past: Sequence[KVCache]) -> tuple[Tensor, list[KVCache]]:
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
        """(N, R, D), what features, places and names say together."""
        features = self.feature_norm(self.visual(full_precision(regions.features)))
        fused = self.fused_norm(self.visual(full_precision(regions.fused_features)))
        places = _centred(full_precision(regions.places))
        said = self.feature(torch.cat([features, fused], dim=-1)) + self.place(places)
        if self.names is None or regions.name_logits is None:
            return said
        shares = (full_precision(regions.name_logits) * self.log_sharpness.exp()).softmax(dim=-1)
        return said + shares @ self.names().to(shares)

    def visual(self, features: Tensor) -> Tensor:
        """The channels that are read as features."""
        return features


class WordMatches(nn.Module):
    """Tells words which regions match them, and how well.

    Attention says which regions a word should read, not whether any is the thing itself, which
    "is there a dog?" asks, or how many are. The region-word scores, which detection learns, say it.
    What they say is added to the words, from zeros to start with. Our choice.
    """

    def __init__(self, *, language_dim: int) -> None:
        super().__init__()
        # Of the best region, of all together, and how many.
        self.score = nn.Linear(3, language_dim)
        self.region = nn.Linear(language_dim, language_dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, words: TextFeatures, seen: Tensor, logits: Tensor, is_found: Tensor
    ) -> TextFeatures:
        """The words of N texts, (N, T, D).

        Args:
            seen: (N, R, D), regions as words.
            logits: (N, R, T) of regions and words.
            is_found: (N, R) bool; the others match nothing.
        """
        with torch.autocast(seen.device.type, enabled=False):
            logits = full_precision(logits)
            logits = logits.masked_fill(~is_found[..., None], torch.finfo(logits.dtype).min)
            scores = torch.stack(
                [logits.amax(dim=1), logits.logsumexp(dim=1), logits.sigmoid().sum(dim=1)], dim=-1
            )
            matched = logits.softmax(dim=1).transpose(1, 2) @ full_precision(seen)
            is_empty = ~is_found.any(dim=1)[:, None, None]
            told = self.score(scores.masked_fill(is_empty, 0)) + self.region(matched)
            hidden = full_precision(words.hidden) + told.masked_fill(is_empty, 0)
        return replace(words, hidden=hidden)


@REGION_READER_REGISTRY.register()
class ClassifierRegionReader(RegionReader):
    """A :class:`RegionReader` of a pyramid whose last D channels are words (glipv2-mini).

    A region is first of all the word that the classifier sees there.
    """

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        tokenizer: Tokenizer,
        language_backbone: Any,
    ) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape, tokenizer, language_backbone)
        visual_dim = arguments["visual_dim"] - arguments["language_dim"]
        if visual_dim <= 0:
            raise ValueError(
                f"the levels have {arguments['visual_dim']} channels, no more than the "
                f"{arguments['language_dim']} of a word: MODEL.REGION_READER.NAME {cls.__name__} "
                "needs MODEL.BACKBONE.NAME build_timm_classifier_fpn_backbone"
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
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], tokenizer: Tokenizer, language_backbone: Any
) -> nn.Module | None:
    """The reader of ``cfg.MODEL.REGION_READER``; None where nothing is said or it has no name."""
    name = cfg.MODEL.REGION_READER.NAME
    says_words = cfg.MODEL.ANSWER.WEIGHT != 0 or cfg.MODEL.CAPTION.WEIGHT != 0
    if not name or not says_words:
        return None
    return REGION_READER_REGISTRY.get(name)(cfg, input_shape, tokenizer, language_backbone)


def _names(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
) -> Callable[[], Tensor] | None:
    """What gives the vectors of the names in ``MODEL.REGION_READER.NAMES_FILE``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or has a name twice; or regions are not scored against words as
            they come from the language backbone, so that names have no vectors of their own.
    """
    file = cfg.MODEL.REGION_READER.NAMES_FILE
    if not file:
        return None
    if cfg.MODEL.GROUNDING.FUSED_WORDS:
        raise ValueError(
            "MODEL.REGION_READER.NAMES_FILE needs words that regions are scored against before "
            "these have read an image: set MODEL.GROUNDING.FUSED_WORDS to False, or NAMES_FILE "
            "to ''"
        )
    return functools.partial(TextVectors(language_backbone, tokenizer), read_answers(file))


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
