"""Embeddings of short strings (answers, names), one vector each.

A: strings. D: width of the language features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.messages import quote
from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds, weights_version
from glipv2_d2.structures import Prompt
from glipv2_d2.text.limits import check_text
from glipv2_d2.text.tokenizer import Tokenizer

# A model has a few lists of answers or names, each used repeatedly.
_CACHED_LISTS = 16
# 8192 embeddings of BERT-base take 24 MiB.
_CACHED_STRINGS = 8192
_STRINGS_PER_BATCH = 64


class TextEmbedder:
    """Embeds strings with the language backbone: the mean over the tokens of each.

    Embeddings are computed without gradient and cached until the backbone's weights change. A
    frozen backbone therefore encodes each string once.
    """

    def __init__(self, language_backbone: LanguageBackbone, tokenizer: Tokenizer) -> None:
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self._cache = PhraseCache(_CACHED_STRINGS)
        self._ids_of: LRUCache[tuple[str, ...], list[PhraseIds]] = LRUCache(_CACHED_LISTS)

    def __call__(self, strings: Sequence[str]) -> Tensor:
        """Embed A strings into (A, D), float32 or wider.

        Raises:
            ValueError: a string has no known token, or too many tokens.
        """
        ids = self._token_ids(tuple(strings))
        string_of = dict(zip(ids, strings, strict=True))
        device = next(self.language_backbone.parameters()).device

        def encode(missing: Sequence[PhraseIds]) -> Tensor:
            # Strings of similar length share a batch: padding would double the time of a long list.
            order = torch.tensor([len(token_ids) for token_ids in missing]).argsort(stable=True)
            parts = [
                self._encode([string_of[missing[i]] for i in rows.tolist()], device)
                for rows in order.split(_STRINGS_PER_BATCH)
            ]
            return torch.cat(parts)[order.argsort()]

        return self._cache(ids, encode, weights_version(self.language_backbone), device)

    def _token_ids(self, strings: tuple[str, ...]) -> list[PhraseIds]:
        cached = self._ids_of.find([strings])
        if not cached:
            for string in strings:
                check_text(string, "answer or name")
            cached[strings] = [tuple(ids) for ids in self.tokenizer.encode(strings)]
            self._check(strings, cached[strings])
            self._ids_of.keep(cached)
        return cached[strings]

    def _check(self, strings: Sequence[str], ids_per_string: Sequence[PhraseIds]) -> None:
        room = self.tokenizer.max_tokens - self.tokenizer.num_special_tokens
        for string, ids in zip(strings, ids_per_string, strict=True):
            if len(ids) > room:
                raise ValueError(
                    f"answer or name {quote(string)} has {len(ids)} tokens, but a prompt has room "
                    f"for {room}: shorten it, or raise the tokenizer's max_tokens"
                )
            if not self.tokenizer.has_words(ids):
                raise ValueError(
                    f"answer or name {quote(string)} has no word in the tokenizer's vocabulary: "
                    "use other words"
                )

    @torch.no_grad()
    def _encode(self, strings: Sequence[str], device: torch.device) -> Tensor:
        prompts = [
            Prompt(string, (((0, len(string)),),), (0,), is_class_list=True) for string in strings
        ]
        tokens = self.tokenizer(prompts).to(device)
        was_training = self.language_backbone.training
        self.language_backbone.eval()  # no dropout
        try:
            with torch.autocast(device.type, enabled=False):
                hidden = full_precision(self.language_backbone(tokens).hidden)
        finally:
            self.language_backbone.train(was_training)
        mask = torch.cat(tokens.positive_maps)[..., None]
        return hidden.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
