"""A sentence encoder that separates what a referring phrase names from how it describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.config import configurable
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.modeling.language import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.modeling.language.cache import PhraseIds
from glipv2_d2.modeling.language.phrase import PhraseLanguageBackbone
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.text import phrases as parser

_CACHED_PHRASES = 8192


@LANGUAGE_BACKBONE_REGISTRY.register()
class CorePhraseLanguageBackbone(PhraseLanguageBackbone):
    """Embeds a phrase as the mean of its own embedding and of its core phrase's.

    MiniLM's embeddings of "the left apple" and "apple" have a cosine of 0.7 and less. The mean is
    similar enough to the class name for a classifier's evidence, and keeps the description, which
    is linear in it. Class names are their own core phrase and keep their embedding (our choice).
    """

    phrase_parser: ClassVar[str] = parser.__name__

    @configurable
    def __init__(self, *, tokenizer: Tokenizer, **kwargs: Any) -> None:
        """
        Args:
            tokenizer: of the encoder.
            kwargs: as in :class:`~glipv2_d2.modeling.language.phrase.PhraseLanguageBackbone`.
        """
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self._core_ids: LRUCache[PhraseIds, PhraseIds] = LRUCache(_CACHED_PHRASES)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {**super().from_config(cfg), "tokenizer": tokenizer}

    def embed_phrases(
        self, phrases: Sequence[PhraseIds], *, special_ids: tuple[int, int]
    ) -> Tensor:
        cores = self._cores_of(phrases)
        embeddings = super().embed_phrases([*phrases, *cores], special_ids=special_ids)
        own, core = F.normalize(embeddings, dim=-1).split(len(phrases))
        return F.normalize(own + core, dim=-1) * math.sqrt(embeddings.shape[-1])

    def _cores_of(self, phrases: Sequence[PhraseIds]) -> list[PhraseIds]:
        """The token ids of each phrase's core phrase."""
        cached = self._core_ids.find(phrases)
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in cached]
        if missing:
            cores = [parser.core_phrase(self.tokenizer.decode(phrase)) for phrase in missing]
            ids_per_core = self.tokenizer.encode(cores)
            found = {p: tuple(ids) for p, ids in zip(missing, ids_per_core, strict=True)}
            self._core_ids.keep(found)
            cached = {**cached, **found}
        return [cached[phrase] for phrase in phrases]
