"""Regions as tokens that the text of questions and captions attends to.

N: images or texts. R: regions of an image. T: tokens. A: class names. C: channels of the pyramid.
D: width of the text features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.fusion.language_layer import LanguageLayer
from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.language.text_embedder import TextEmbedder
from glipv2_d2.structures import TextFeatures
from glipv2_d2.text.answers import load_answers
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.evidence_backbone import FEATURE_CHANNELS
from glipv2_mini.modeling.region_proposals import RegionProposer, build_region_proposer
from glipv2_mini.modeling.regions import Regions

_BOX_DIM = 64
# Initial inverse temperature of the softmax over class names: region-word logits are trained with
# binary losses, so among hundreds of names even the best has a small probability.
_CLASS_SCALE = 4.0


class RegionEncoder(nn.Module, Configurable):
    """Transformer layers over the regions of an image and the tokens of a text (our choice).

    Fused text has attended to the maps location by location. Here it attends to whole objects, few
    enough to be separated, counted and compared. A region's token is the sum of its projected
    features and box, and of the mean embedding of the class names that it matches.
    """

    @configurable
    def __init__(
        self,
        *,
        proposer: RegionProposer,
        visual_dim: int,
        language_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        class_embeddings: Callable[[], Tensor] | None = None,
        encodes_matches: bool = True,
    ) -> None:
        """
        Args:
            proposer: proposes the regions.
            visual_dim: C.
            language_dim: D.
            num_heads, ffn_dim, dropout: of every layer.
            class_embeddings: returns the (A, D) embeddings of the class names that regions are
                scored against; None: no class names.
            encodes_matches: add an encoding of the region-word logits to the tokens of questions.
        """
        super().__init__()
        self.proposer = proposer
        self.class_embeddings = class_embeddings
        self.visual_dim = visual_dim
        self.matches = MatchEncoder(language_dim=language_dim) if encodes_matches else None
        self.feature_norm = nn.LayerNorm(visual_dim)
        self.fused_norm = nn.LayerNorm(visual_dim)
        self.feature = nn.Linear(2 * visual_dim, language_dim)
        self.box = nn.Sequential(
            nn.Linear(5, _BOX_DIM), nn.GELU(), nn.Linear(_BOX_DIM, language_dim)
        )
        self.norm = nn.LayerNorm(language_dim)
        self.layers = nn.ModuleList(
            LanguageLayer(dim=language_dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        for layer in self._layers():
            _initialize_as_similarity(layer)
        if class_embeddings is not None:
            self.log_class_scale = nn.Parameter(torch.tensor(math.log(_CLASS_SCALE)))

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        tokenizer: Tokenizer,
        language_backbone: LanguageBackbone,
    ) -> dict[str, Any]:
        settings = cfg.MODEL.REGION_ENCODER
        return {
            "proposer": build_region_proposer(cfg, input_shape),
            "visual_dim": FEATURE_CHANNELS,
            "language_dim": language_backbone.width,
            "class_embeddings": _class_embeddings(cfg, tokenizer, language_backbone),
            # Only questions use it, and every parameter must receive a gradient.
            "encodes_matches": cfg.MODEL.ANSWER.WEIGHT != 0,
            "num_layers": settings.NUM_LAYERS,
            "num_heads": settings.HEADS,
            "ffn_dim": settings.FFN_DIM,
            "dropout": settings.DROPOUT,
        }

    def forward(
        self, text: TextFeatures, regions: Regions, logits: Tensor | None = None
    ) -> TextFeatures:
        """(N, T, D) text after attention to the regions of its image.

        Regions do not attend to causal text, so that their keys and values stay the same while a
        caption grows.

        Args:
            logits: (N, R, T) region-word logits, for text that is not causal.
        """
        if text.causal:
            hidden, _ = self.decode_step(text.hidden, self.encode(regions))
            return replace(text, hidden=hidden)
        tokens = self.region_tokens(regions)
        if logits is not None and self.matches is not None:
            text = self.matches(text, tokens, logits, regions.is_valid)
        num_regions = tokens.shape[1]
        mask = torch.cat([text.mask.new_ones(tokens.shape[:2]), text.mask], dim=1)
        both = TextFeatures(torch.cat([tokens, text.hidden.to(tokens)], dim=1), mask)
        for layer in self._layers():
            both = layer(both)
        return replace(text, hidden=both.hidden[:, num_regions:])

    def encode(self, regions: Regions) -> list[KVCache]:
        """Per layer the keys and values of the regions, for causal text."""
        tokens = self.region_tokens(regions)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        caches = []
        for layer in self._layers():
            encoded, cache = layer.encode_prefix(TextFeatures(tokens, mask))
            tokens = encoded.hidden
            caches.append(cache)
        return caches

    def decode_step(self, hidden: Tensor, cache: Sequence[KVCache]) -> tuple[Tensor, list[KVCache]]:
        """Let (N, T, D) further tokens of causal text attend to regions and earlier tokens.

        Args:
            cache: per layer, from :meth:`encode` or from the step before.

        Returns:
            (N, T, D), and the extended caches.
        """
        next_cache = []
        for layer, own in zip(self._layers(), cache, strict=True):
            hidden, extended = layer.decode_step(hidden, own)
            next_cache.append(extended)
        return hidden, next_cache

    def region_tokens(self, regions: Regions) -> Tensor:
        """(N, R, D) embeddings of the regions, in at least float32."""
        with torch.autocast(regions.boxes.device.type, enabled=False):
            return self.norm(self.embed(regions))

    def embed(self, regions: Regions) -> Tensor:
        """(N, R, D), the sum of feature, box and class embeddings, before the norm."""
        features = self.feature_norm(self.visual(full_precision(regions.features)))
        fused = self.fused_norm(self.visual(full_precision(regions.fused_features)))
        boxes = _centered(full_precision(regions.boxes))
        embedding = self.feature(torch.cat([features, fused], dim=-1)) + self.box(boxes)
        if self.class_embeddings is None or regions.class_logits is None:
            return embedding
        logits = full_precision(regions.class_logits) * self.log_class_scale.exp()
        probabilities = logits.softmax(dim=-1)
        return embedding + probabilities @ self.class_embeddings().to(probabilities)

    def visual(self, features: Tensor) -> Tensor:
        """The channels that are image features, without the evidence."""
        return features[..., : self.visual_dim]

    def _layers(self) -> list[LanguageLayer]:
        return cast("list[LanguageLayer]", list(self.layers))


class MatchEncoder(nn.Module):
    """Adds an encoding of the region-word logits to each token (our choice).

    Attention selects the regions of a token, but loses whether any region matches it at all and how
    many do, which "is there a dog?" and "how many" need. Initialised to add nothing.
    """

    def __init__(self, *, language_dim: int) -> None:
        super().__init__()
        # Of the best logit, of the logsumexp, and of the expected number of matches.
        self.score = nn.Linear(3, language_dim)
        self.region = nn.Linear(language_dim, language_dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, text: TextFeatures, region_tokens: Tensor, logits: Tensor, is_valid: Tensor
    ) -> TextFeatures:
        """
        Args:
            text: (N, T, D).
            region_tokens: (N, R, D).
            logits: (N, R, T) region-word logits.
            is_valid: (N, R) bool; other regions match nothing.
        """
        with torch.autocast(region_tokens.device.type, enabled=False):
            logits = full_precision(logits)
            logits = logits.masked_fill(~is_valid[..., None], torch.finfo(logits.dtype).min)
            scores = torch.stack(
                [logits.amax(dim=1), logits.logsumexp(dim=1), logits.sigmoid().sum(dim=1)], dim=-1
            )
            matched = logits.softmax(dim=1).transpose(1, 2) @ full_precision(region_tokens)
            is_empty = ~is_valid.any(dim=1)[:, None, None]
            update = self.score(scores.masked_fill(is_empty, 0)) + self.region(matched)
            hidden = full_precision(text.hidden) + update.masked_fill(is_empty, 0)
        return replace(text, hidden=hidden)


def _class_embeddings(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
) -> Callable[[], Tensor] | None:
    """Returns the embeddings of the class names in ``MODEL.REGION_ENCODER.NAMES_FILE``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is empty or has duplicates; or regions are scored against fused text, so that
            class names have no embedding of their own.
    """
    file = cfg.MODEL.REGION_ENCODER.NAMES_FILE
    if not file:
        return None
    if cfg.MODEL.GROUNDING.SCORE_FUSED_TEXT:
        raise ValueError(
            "MODEL.REGION_ENCODER.NAMES_FILE needs regions that are scored against text before "
            "fusion: set MODEL.GROUNDING.SCORE_FUSED_TEXT to False, or NAMES_FILE to ''"
        )
    return functools.partial(TextEmbedder(language_backbone, tokenizer), load_answers(file))


def _initialize_as_similarity(layer: LanguageLayer) -> None:
    """Initialise attention to compare inputs: queries and keys with equal, orthogonal weights.

    A class name then attends to similar regions from the start.
    """
    nn.init.orthogonal_(layer.query.weight)
    with torch.no_grad():
        layer.key.weight.copy_(layer.query.weight)


def _centered(boxes: Tensor) -> Tensor:
    """Centres from -1 to 1; sizes and score unchanged."""
    return torch.cat([boxes[..., :2] * 2 - 1, boxes[..., 2:]], dim=-1)
