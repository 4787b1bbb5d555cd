"""What the language backbone has said before: memories for prompts and for single phrases.

N: prompts of a batch. T: tokens of the longest. D: width of the features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from glipv2_d2.structures import LanguageFeatures, TokenBatch

PhraseIds = tuple[int, ...]
"""The token ids of one phrase, without [CLS] and [SEP]."""


def weights_version(module: nn.Module) -> Hashable:
    """Something that differs after the module's weights were changed in place or replaced.

    Autograd counts the changes of a tensor. Fused optimizers and writes through ``.data`` escape
    its count, so nobody should rely on it across training steps.
    """
    return tuple((p.data_ptr(), p._version) for p in module.parameters())


class LanguageCache:
    """Keeps the features of the prompts asked last, across images; for inference.

    A prompt is known by its token ids and the tokens of its labels. All is forgotten when the
    weights of the backbone change and whenever it is asked with gradients or in training mode,
    where the cache only passes on. At most ``size`` prompts are held, each T x D numbers on the
    device of the backbone (768 KiB for a full one of BERT-base).
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: prompts to keep, the least recently used goes first; 0 keeps none.
        """
        if size < 0:
            raise ValueError(f"MODEL.LANGUAGE_BACKBONE.CACHE_SIZE is {size}; 0 turns the cache off")
        self.size = size
        self._version: Hashable = None
        self._hidden: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hidden)

    def clear(self) -> None:
        self._hidden.clear()

    def __call__(self, language_backbone: nn.Module, tokens: TokenBatch) -> LanguageFeatures:
        """``language_backbone(tokens)``, of which only unknown prompts are really asked.

        Rows of padding are zeros.
        """
        if language_backbone.training or torch.is_grad_enabled():
            self.clear()
            return language_backbone(tokens)
        if self.size == 0:
            return language_backbone(tokens)
        self._forget_old_weights(language_backbone, tokens.input_ids.device)
        keys = _prompt_keys(tokens)
        self._ask_unknown(language_backbone, tokens, keys)
        hidden = _pad([self._hidden[key] for key in keys], tokens.mask.shape[1])
        self._shrink()
        return LanguageFeatures(hidden, tokens.mask)

    def _forget_old_weights(self, language_backbone: nn.Module, device: torch.device) -> None:
        precision = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else None
        )
        version = (weights_version(language_backbone), precision)
        if version != self._version:
            self.clear()
            self._version = version

    def _ask_unknown(
        self, language_backbone: nn.Module, tokens: TokenBatch, keys: Sequence[Hashable]
    ) -> None:
        unknown: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key in self._hidden:
                self._hidden.move_to_end(key)
            else:
                unknown.setdefault(key, row)
        if not unknown:
            return
        rows = list(unknown.values())
        features = language_backbone(_select_prompts(tokens, rows))
        lengths = features.mask.sum(dim=1).tolist()
        for key, hidden, length in zip(unknown, features.hidden, lengths, strict=True):
            # A copy: a view would keep the whole batch alive.
            self._hidden[key] = hidden[:length].clone()

    def _shrink(self) -> None:
        while len(self._hidden) > self.size:
            self._hidden.popitem(last=False)


def _prompt_keys(tokens: TokenBatch) -> list[Hashable]:
    """A key per prompt that its padding does not change.

    The labels belong to it since a backbone may encode phrases one by one.
    """
    ids_per_prompt = tokens.input_ids.cpu().numpy()
    lengths = tokens.mask.sum(dim=1).tolist()
    keys: list[Hashable] = []
    for ids, length, positive_map in zip(
        ids_per_prompt, lengths, tokens.positive_maps, strict=True
    ):
        labels = positive_map[:, :length].cpu().numpy()
        keys.append((ids[:length].tobytes(), labels.shape, labels.tobytes()))
    return keys


def _select_prompts(tokens: TokenBatch, rows: Sequence[int]) -> TokenBatch:
    """Some prompts of a batch, trimmed to the longest of them."""
    mask = tokens.mask[rows]
    num_tokens = int(mask.sum(dim=1).max())
    return TokenBatch(
        input_ids=tokens.input_ids[rows, :num_tokens],
        mask=mask[:, :num_tokens],
        positive_maps=tuple(tokens.positive_maps[row][:, :num_tokens] for row in rows),
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
    """The vectors of the phrases asked last, as rows of one table: known phrases cost a gather."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: phrases to keep, at least 1; the least recently used goes first.
        """
        self.size = size
        self._version: Hashable = None
        self._row_of: OrderedDict[PhraseIds, int] = OrderedDict()
        self._table: Tensor | None = None

    def __len__(self) -> int:
        return len(self._row_of)

    def __call__(
        self,
        phrases: Sequence[PhraseIds],
        encode: Callable[[list[PhraseIds]], Tensor],
        version: Hashable,
    ) -> Tensor:
        """The vectors of some phrases, of which only unknown ones are encoded.

        Args:
            phrases: P phrases, any of them several times.
            encode: gives the (K, D) vectors of K different phrases.
            version: what the vectors depend on besides the phrase; a new one empties the cache.

        Returns:
            (P, D), without gradient.
        """
        if version != self._version:
            self._row_of.clear()
            self._table = None
            self._version = version
        different = list(dict.fromkeys(phrases))
        if len(different) > self.size:
            index = {phrase: i for i, phrase in enumerate(different)}
            return encode(different)[[index[phrase] for phrase in phrases]]
        unknown = [phrase for phrase in different if phrase not in self._row_of]
        # In use now, so not the ones to make room for others.
        for phrase in different:
            if phrase in self._row_of:
                self._row_of.move_to_end(phrase)
        if unknown:
            self._store(unknown, encode(unknown))
        assert self._table is not None
        return self._table[[self._row_of[phrase] for phrase in phrases]]

    # A table made in inference mode could not be written to in training.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _store(self, phrases: Sequence[PhraseIds], vectors: Tensor) -> None:
        if self._table is None:
            self._table = torch.zeros(
                self.size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device
            )
        for phrase in phrases:
            row = len(self._row_of)
            if row == self.size:
                _, row = self._row_of.popitem(last=False)
            self._row_of[phrase] = row
        self._table[[self._row_of[phrase] for phrase in phrases]] = vectors
