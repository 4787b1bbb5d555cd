"""Short texts as one vector each, to be compared with what is seen or asked.

A: texts. D: width of the language features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds, weights_version
from glipv2_d2.structures import Prompt
from glipv2_d2.text.tokenizer import Tokenizer

# Lists whose tokens are remembered: a model has few, and asks for them again and again.
_KNOWN_LISTS = 16
# 8192 texts of BERT-base are 24 MiB.
_CACHED_TEXTS = 8192
_TEXTS_PER_BATCH = 256


class TextVectors:
    """The vectors that the language backbone gives to texts, each the mean over its tokens.

    Without gradient: a list of thousands is read anew whenever the backbone has learned something.
    Those of a frozen one are kept.
    """

    def __init__(self, language_backbone: nn.Module, tokenizer: Tokenizer) -> None:
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self._cache = PhraseCache(_CACHED_TEXTS)
        self._ids_of: LRUCache[tuple[str, ...], list[PhraseIds]] = LRUCache(_KNOWN_LISTS)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(A, D), in at least float32.

        Raises:
            ValueError: the tokenizer knows none of a text's words, or it has too many.
        """
        ids = self._ids(tuple(texts))
        text_of = dict(zip(ids, texts, strict=True))
        device = next(self.language_backbone.parameters()).device

        def encode(unknown: Sequence[PhraseIds]) -> Tensor:
            different = [text_of[pieces] for pieces in unknown]
            parts = [
                self._encode(different[start : start + _TEXTS_PER_BATCH], device)
                for start in range(0, len(different), _TEXTS_PER_BATCH)
            ]
            return torch.cat(parts)

        return self._cache(ids, encode, weights_version(self.language_backbone), device)

    def _ids(self, texts: tuple[str, ...]) -> list[PhraseIds]:
        known = self._ids_of.find([texts])
        if not known:
            known[texts] = [tuple(pieces) for pieces in self.tokenizer.pieces(texts)]
            self._check(texts, known[texts])
            self._ids_of.keep(known)
        return known[texts]

    def _check(self, texts: Sequence[str], ids: Sequence[PhraseIds]) -> None:
        room = self.tokenizer.max_tokens - self.tokenizer.num_special_tokens
        specials = set(self.tokenizer.special_ids)
        for text, pieces in zip(texts, ids, strict=True):
            if len(pieces) > room:
                raise ValueError(
                    f"answer or name {text[:60]!r} has {len(pieces)} tokens, a prompt has room for "
                    f"{room}: shorten it or raise MODEL.PROMPT.MAX_TOKENS"
                )
            if specials.issuperset(pieces):
                raise ValueError(
                    f"answer or name {text!r} has no word that the tokenizer knows, and so cannot "
                    "be told from others: write it in other words"
                )

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], device: torch.device) -> Tensor:
        prompts = [Prompt(text, (((0, len(text)),),), (0,), is_class_list=True) for text in texts]
        tokens = self.tokenizer(prompts).to(device)
        was_training = self.language_backbone.training
        # Without dropout.
        self.language_backbone.eval()
        try:
            with torch.autocast(device.type, enabled=False):
                hidden = full_precision(self.language_backbone(tokens).hidden)
        finally:
            self.language_backbone.train(was_training)
        is_text = torch.cat(tokens.positive_maps)[..., None]
        return hidden.masked_fill(~is_text, 0).sum(dim=1) / is_text.sum(dim=1).clamp(min=1)
