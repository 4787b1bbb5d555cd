"""Caches of text features: per prompt (LanguageCache) and per phrase (PhraseCache).

N: prompts of a batch. T: tokens of the longest. D: width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from glipv2_d2.layers.lru_cache import LRUCache, stream_id
from glipv2_d2.layers.tracing import is_tracing
from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.structures import TextFeatures, TokenBatch

PhraseIds = tuple[int, ...]
"""The token ids of one phrase, without [CLS] and [SEP]."""

# Values per tensor that are compared to detect changes without a version count.
_SAMPLES_PER_TENSOR = 8


def weights_version(module: nn.Module) -> Hashable:
    """A key that changes when the module's weights are updated, replaced or moved.

    It holds autograd's version count and the address of every tensor, and, for changes that neither
    shows (fused optimizers, writes through ``.data``, reused memory), evenly spaced values of it.
    Writing a few values through ``.data`` may go undetected: call ``LanguageCache.clear`` then.
    """
    tensors = [*module.parameters(), *module.buffers()]
    identities = tuple(
        # Tensors created in inference mode have no version count.
        (t.data_ptr(), None if t.is_inference() else t._version, t.dtype, t.device)
        for t in tensors
    )
    return identities, tuple(_samples(tensors))


@torch.no_grad()
def _samples(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    """Sampled values of the tensors, concatenated per device."""
    for device in dict.fromkeys(t.device for t in tensors):
        values = [
            t.reshape(-1)[:: max(1, t.numel() // _SAMPLES_PER_TENSOR)]
            for t in tensors
            if t.device == device
        ]
        yield torch.cat(values).double().cpu().numpy().tobytes()


class LanguageCache:
    """Features of the most recently used prompts, shared by all images; for inference.

    The key of a prompt is its token ids, text, spans and kind. The cache is emptied when the
    backbone's weights change. In training mode and with gradients enabled it is emptied and
    bypassed. An entry takes T x D values on the backbone's device (768 KiB for 256 tokens of
    BERT-base). The cache is thread-safe. Switches that are not tensors, such as peft's
    ``enable_adapters``, go undetected: call :meth:`clear` after them.
    """

    def __init__(self, language_cache_size: int) -> None:
        """
        Args:
            language_cache_size: number of prompts to keep, evicting the least recently used; 0
                disables the cache.
        """
        if language_cache_size < 0:
            raise ValueError(f"language_cache_size is {language_cache_size}; 0 disables the cache")
        self._hidden: LRUCache[Hashable, Tensor] = LRUCache(language_cache_size)

    def __len__(self) -> int:
        return len(self._hidden)

    def clear(self) -> None:
        self._hidden.clear()

    def __call__(self, language_backbone: LanguageBackbone, tokens: TokenBatch) -> TextFeatures:
        """Equal ``language_backbone(tokens)``, but encode only prompts that are not cached.

        Padding has zero features.
        """
        if is_tracing():
            return language_backbone(tokens)
        return self._encode_missing(language_backbone, tokens)

    # Dictionary lookups are not for torch.compile.
    @torch.compiler.disable(recursive=False)
    def _encode_missing(
        self, language_backbone: LanguageBackbone, tokens: TokenBatch
    ) -> TextFeatures:
        if language_backbone.training or torch.is_grad_enabled():
            self.clear()
            return language_backbone(tokens)
        if self._hidden.size == 0:
            return language_backbone(tokens)
        version = (weights_version(language_backbone), _autocast_dtype(tokens.input_ids.device))
        keys = _prompt_keys(tokens)
        hidden = self._hidden.find(keys, version)
        missing: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key not in hidden:
                missing.setdefault(key, row)
        if missing:
            encoded = _encode(language_backbone, _select_prompts(tokens, list(missing.values())))
            new = dict(zip(missing, encoded, strict=True))
            self._hidden.keep(new, version)
            hidden |= new
        padded = _pad([hidden[key] for key in keys], tokens.mask.shape[1])
        return TextFeatures(padded, tokens.mask, tokens.causal)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _prompt_keys(tokens: TokenBatch) -> list[Hashable]:
    """A key per prompt, independent of its padding.

    It includes text, spans, nouns and kind, because a backbone may encode phrases separately, and
    with or without the words around them.
    """
    stream = stream_id(tokens.input_ids.device)
    ids_per_prompt = tokens.input_ids.cpu().numpy()
    lengths = tokens.mask.sum(dim=1).tolist()
    return [
        (
            stream,
            ids[:length].tobytes(),
            prompt.text,
            prompt.spans,
            prompt.is_question,
            prompt.nouns,
            tokens.causal,
        )
        for ids, length, prompt in zip(ids_per_prompt, lengths, tokens.prompts, strict=True)
    ]


def _encode(language_backbone: LanguageBackbone, tokens: TokenBatch) -> list[Tensor]:
    """(T_i, D) features of each prompt, without padding."""
    features = language_backbone(tokens)
    lengths = features.mask.sum(dim=1).tolist()
    # Copies: a view would keep the whole batch alive.
    return [
        hidden[:length].clone() for hidden, length in zip(features.hidden, lengths, strict=True)
    ]


def _select_prompts(tokens: TokenBatch, rows: Sequence[int]) -> TokenBatch:
    """Some prompts of a batch, trimmed to the longest of them."""
    mask = tokens.mask[rows]
    num_tokens = int(mask.sum(dim=1).max())
    return replace(
        tokens,
        input_ids=tokens.input_ids[rows, :num_tokens],
        mask=mask[:, :num_tokens],
        positive_maps=tuple(tokens.positive_maps[row][:, :num_tokens] for row in rows),
        noun_maps=tuple(tokens.noun_maps[row][:, :num_tokens] for row in rows),
        prompts=tuple(tokens.prompts[row] for row in rows),
    )


def _pad(hidden_per_prompt: Sequence[Tensor], num_tokens: int) -> Tensor:
    """(T_i, D) tensors -> (N, T, D), padded with zeros."""
    first = hidden_per_prompt[0]
    padded = first.new_zeros(len(hidden_per_prompt), num_tokens, first.shape[-1])
    for row, hidden in zip(padded, hidden_per_prompt, strict=True):
        row[: len(hidden)] = hidden
    return padded


class PhraseCache:
    """Embeddings of the most recently used phrases. Thread-safe."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: number of phrases to keep, at least 1, evicting the least recently used.
        """
        self._embeddings: LRUCache[tuple[int, PhraseIds], Tensor] = LRUCache(size)

    def __len__(self) -> int:
        return len(self._embeddings)

    def __call__(
        self,
        phrases: Sequence[PhraseIds],
        encode: Callable[[list[PhraseIds]], Tensor],
        version: Hashable,
        device: torch.device,
    ) -> Tensor:
        """Embed P phrases, encoding only those that are not cached.

        Args:
            phrases: P phrases, possibly repeated.
            encode: K different phrases -> their (K, D) embeddings.
            version: everything else that the embeddings depend on; a new one empties the cache.
            device: where ``encode`` runs.

        Returns:
            (P, D), without gradient.
        """
        stream = stream_id(device)
        keys = [(stream, phrase) for phrase in phrases]
        embeddings = self._embeddings.find(keys, version)
        missing = list(dict.fromkeys(key for key in keys if key not in embeddings))
        if missing:
            encoded = _rows(encode([phrase for _, phrase in missing]))
            new = dict(zip(missing, encoded, strict=True))
            self._embeddings.keep(new, version)
            embeddings |= new
        return torch.stack([embeddings[key] for key in keys])


# Tensors created in inference mode could not be used in training.
@torch.inference_mode(False)
@torch.no_grad()
def _rows(embeddings: Tensor) -> list[Tensor]:
    """Copies of the rows: a view would keep all of them alive."""
    return [embedding.clone() for embedding in embeddings]
