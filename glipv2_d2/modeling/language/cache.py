"""What the language backbone has said before: memories for prompts and for single phrases.

N: prompts of a batch. T: tokens of the longest. D: width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from glipv2_d2.layers.lru_cache import LRUCache, stream_id
from glipv2_d2.structures import TextFeatures, TokenBatch

PhraseIds = tuple[int, ...]
"""The token ids of one phrase, without [CLS] and [SEP]."""

# Numbers of every tensor that are looked at for changes that nobody counts.
_SAMPLES_PER_TENSOR = 8


def weights_version(module: nn.Module) -> Hashable:
    """Something that differs after the module's weights were changed, replaced or moved.

    Autograd counts the changes of a tensor, and new memory has another address. What escapes both
    (fused optimizers, writes through ``.data``, memory that is used again) shows in a sample of the
    numbers, taken evenly from every tensor; a write through ``.data`` to a few numbers only may
    escape that too: ``LanguageCache.clear`` is for those.
    """
    tensors = [*module.parameters(), *module.buffers()]
    identities = tuple(
        # What was made in inference mode has no count.
        (t.data_ptr(), None if t.is_inference() else t._version, t.dtype, t.device)
        for t in tensors
    )
    return identities, tuple(_samples(tensors))


@torch.no_grad()
def _samples(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    """Numbers of the tensors, those of a device together."""
    for device in dict.fromkeys(t.device for t in tensors):
        numbers = [
            t.reshape(-1)[:: max(1, t.numel() // _SAMPLES_PER_TENSOR)]
            for t in tensors
            if t.device == device
        ]
        yield torch.cat(numbers).double().cpu().numpy().tobytes()


class LanguageCache:
    """Keeps the features of the prompts asked last, across images; for inference.

    A prompt is known by its token ids, its text, its spans and its kind. All is forgotten when
    the weights of the backbone change and whenever it is asked with gradients or in training mode,
    where the cache only passes on. At most ``size`` prompts are held, each T x D numbers on the
    device of the backbone (768 KiB for a full one of BERT-base). Several threads may ask at once.
    A switch that is no tensor, such as peft's ``enable_adapters``, is not noticed: ``clear`` then.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: prompts to keep, the least recently used goes first; 0 keeps none.
        """
        if size < 0:
            raise ValueError(f"MODEL.LANGUAGE_BACKBONE.CACHE_SIZE is {size}; 0 turns the cache off")
        self._hidden: LRUCache[Hashable, Tensor] = LRUCache(size)

    def __len__(self) -> int:
        return len(self._hidden)

    def clear(self) -> None:
        self._hidden.clear()

    # Its bookkeeping is no arithmetic.
    @torch.compiler.disable(recursive=False)
    def __call__(self, language_backbone: nn.Module, tokens: TokenBatch) -> TextFeatures:
        """``language_backbone(tokens)``, of which only unknown prompts are really asked.

        Rows of padding are zeros.
        """
        if language_backbone.training or torch.is_grad_enabled():
            self.clear()
            return language_backbone(tokens)
        if self._hidden.size == 0:
            return language_backbone(tokens)
        version = (weights_version(language_backbone), _precision(tokens.input_ids.device))
        keys = _prompt_keys(tokens)
        hidden = self._hidden.find(keys, version)
        unknown: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key not in hidden:
                unknown.setdefault(key, row)
        if unknown:
            asked = _ask(language_backbone, _select_prompts(tokens, list(unknown.values())))
            learned = dict(zip(unknown, asked, strict=True))
            self._hidden.keep(learned, version)
            hidden |= learned
        padded = _pad([hidden[key] for key in keys], tokens.mask.shape[1])
        return TextFeatures(padded, tokens.mask, tokens.causal)


def _precision(device: torch.device) -> torch.dtype | None:
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _prompt_keys(tokens: TokenBatch) -> list[Hashable]:
    """A key per prompt that its padding does not change.

    Text, spans, nouns and kind belong to it since a backbone may encode phrases one by one, and
    read the words around them or not.
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


def _ask(language_backbone: nn.Module, tokens: TokenBatch) -> list[Tensor]:
    """(T_i, D) features of each prompt without its padding."""
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
    """(T_i, D) tensors -> (N, T, D), zeros behind each."""
    first = hidden_per_prompt[0]
    padded = first.new_zeros(len(hidden_per_prompt), num_tokens, first.shape[-1])
    for row, hidden in zip(padded, hidden_per_prompt, strict=True):
        row[: len(hidden)] = hidden
    return padded


class PhraseCache:
    """The vectors of the phrases asked last. Several threads may ask at once."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: phrases to keep, at least 1; the least recently used goes first.
        """
        self._vectors: LRUCache[tuple[int, PhraseIds], Tensor] = LRUCache(size)

    def __len__(self) -> int:
        return len(self._vectors)

    def __call__(
        self,
        phrases: Sequence[PhraseIds],
        encode: Callable[[list[PhraseIds]], Tensor],
        version: Hashable,
        device: torch.device,
    ) -> Tensor:
        """The vectors of some phrases, of which only unknown ones are encoded.

        Args:
            phrases: P phrases, any of them several times.
            encode: gives the (K, D) vectors of K different phrases.
            version: what the vectors depend on besides the phrase; a new one empties the cache.
            device: where ``encode`` works.

        Returns:
            (P, D), without gradient.
        """
        stream = stream_id(device)
        keys = [(stream, phrase) for phrase in phrases]
        vectors = self._vectors.find(keys, version)
        unknown = list(dict.fromkeys(key for key in keys if key not in vectors))
        if unknown:
            encoded = _rows(encode([phrase for _, phrase in unknown]))
            learned = dict(zip(unknown, encoded, strict=True))
            self._vectors.keep(learned, version)
            vectors |= learned
        return torch.stack([vectors[key] for key in keys])


# What is made in inference mode could not be used in training.
@torch.inference_mode(False)
@torch.no_grad()
def _rows(vectors: Tensor) -> list[Tensor]:
    """Copies of the rows: views would keep all of them alive."""
    return [vector.clone() for vector in vectors]
