"""Prompts -> :class:`~glipv2_d2.structures.TokenBatch`, with a fast tokenizer of transformers.

The tokens at the ends of a text, [CLS] and [SEP] of BERT, are <|startoftext|> and <|endoftext|> of
CLIP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from glipv2_d2.messages import quote
from glipv2_d2.structures import Prompt, TokenBatch
from glipv2_d2.text.clip_vocabulary import (
    VOCABULARY_FILE,
    is_clip_tokenizer,
    read_clip_tokenizer,
    with_mask_token,
)
from glipv2_d2.text.limits import check_unicode
from glipv2_d2.text.model_files import resolve_model
from glipv2_d2.text.token_maps import positive_map

_NO_TOKENIZER = (
    "no tokenizer at {!r}: pass a directory with config.json and vocab.txt (or tokenizer.json), or "
    f"with CLIP's {VOCABULARY_FILE}, 'package:NAME', or a model name on the hub (which needs "
    "network access)"
)


class Tokenizer:
    """Tokenizes prompts, with a map from their labels to tokens.

    Args:
        model: see :func:`~glipv2_d2.text.model_files.resolve_model`.
        max_tokens: limit per prompt, including [CLS] and [SEP].

    Raises:
        ValueError: ``model`` has no tokenizer, or one without character offsets; or
            ``max_tokens`` leaves no room for words.
    """

    def __init__(self, model: str = "bert-base-uncased", max_tokens: int = 256) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = _load(model)
        self.num_special_tokens: int = self._tokenizer.num_special_tokens_to_add(pair=False)
        if max_tokens <= self.num_special_tokens:
            raise ValueError(f"max_tokens is {max_tokens}: [CLS] and [SEP] leave no room for words")

    @property
    def fingerprint(self) -> str:
        """A digest of all that determines the tokens of a string."""
        # Every call sets the truncation and padding, which are part of the state.
        self.encode([""])
        state = f"{self.max_tokens} {self._tokenizer.backend_tokenizer.to_str()}"
        return hashlib.sha256(state.encode()).hexdigest()

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token.

        Raises:
            ValueError: the vocabulary has none.
        """
        if self._tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which masked language modeling and question "
                "answering need: use a BERT, or set the weights of their losses to 0"
            )
        return int(self._tokenizer.mask_token_id)

    @property
    def mask_token(self) -> str:
        """The mask token as a string; raises as :attr:`mask_token_id`."""
        return str(self._tokenizer.convert_ids_to_tokens(self.mask_token_id))

    @property
    def begin_id(self) -> int:
        """The id of [CLS], the first token of every prompt."""
        return int(self._tokenizer.cls_token_id)

    @property
    def end_id(self) -> int:
        """The id of [SEP], the last token of every prompt."""
        return int(self._tokenizer.sep_token_id)

    @property
    def unknown_id(self) -> int | None:
        """The id of words outside the vocabulary."""
        unknown = self._tokenizer.unk_token_id
        return None if unknown is None else int(unknown)

    def serialized(self) -> str:
        """The tokenizer.json of the library tokenizers."""
        return str(self._tokenizer.backend_tokenizer.to_str())

    @property
    def special_ids(self) -> list[int]:
        """The ids of all special tokens, including [CLS] and [SEP]."""
        return sorted(self._tokenizer.all_special_ids)

    def has_words(self, ids: Sequence[int]) -> bool:
        """Whether the token ids of a string, :meth:`encode`, have a meaning.

        They have none if all are special tokens, or if some are unknown and the others are
        punctuation.
        """
        special, unknown = set(self._tokenizer.all_special_ids), self._tokenizer.unk_token_id
        known = [i for i in ids if i not in special]
        if unknown not in ids:
            return len(known) > 0
        tokens = self._tokenizer.convert_ids_to_tokens(known)
        return any(character.isalnum() for token in tokens for character in token)

    def are_known(self, texts: Sequence[str]) -> list[bool]:
        """Whether each string has words in the vocabulary, see :meth:`has_words`.

        >>> Tokenizer().are_known(["cat", "杯"])
        [True, False]
        """
        return [self.has_words(ids) for ids in self.encode(texts)]

    def __call__(self, prompts: Sequence[Prompt]) -> TokenBatch:
        """Tokenize prompts and pad them to the longest.

        Raises:
            ValueError: a prompt is longer than ``max_tokens``, or not valid Unicode.
        """
        encoding = self._tokenize([prompt.text for prompt in prompts])
        lengths = [len(ids) for ids in encoding["input_ids"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.max_tokens:
                raise ValueError(
                    f"prompt {quote(prompt.text)} has {length} tokens, the limit is "
                    f"{self.max_tokens}: shorten it, use fewer class names, or raise max_tokens"
                )
        num_tokens = max(lengths, default=0)
        input_ids = torch.full((len(prompts), num_tokens), self._tokenizer.pad_token_id)
        for row, ids in zip(input_ids, encoding["input_ids"], strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return TokenBatch(
            input_ids=input_ids,
            mask=torch.arange(num_tokens) < torch.tensor(lengths, dtype=torch.int64)[:, None],
            positive_maps=tuple(
                positive_map(prompt.spans, offsets, num_tokens)
                for prompt, offsets in zip(prompts, encoding["offset_mapping"], strict=True)
            ),
            noun_maps=tuple(
                positive_map([[noun] for noun in prompt.nouns], offsets, num_tokens)
                for prompt, offsets in zip(prompts, encoding["offset_mapping"], strict=True)
            ),
            prompts=tuple(prompts),
        )

    def count(self, text: str) -> int:
        """The number of tokens of a string, without [CLS] and [SEP]."""
        return self.counts([text])[0]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """:meth:`count` of each string, in one batch."""
        return [len(ids) for ids in self.encode(texts)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each string, without [CLS] and [SEP]."""
        return self._tokenize(texts, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The string of token ids, without special tokens. Those of BERT and CLIP are in lower
        case.

        >>> Tokenizer().decode([101, 1037, 4937, 1012, 102])
        'a cat.'
        """
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        return str(text).strip()

    def fit(self, prompt: Prompt) -> Prompt:
        """Truncate a prompt to ``max_tokens``, for training; inference raises an error instead.

        The text is cut at a token boundary. Spans that end after it are dropped, and labels
        without a remaining span.
        """
        encoding = self._tokenize([prompt.text])
        if len(encoding["input_ids"][0]) <= self.max_tokens:
            return prompt
        words = [(start, end) for start, end in encoding["offset_mapping"][0] if start < end]
        # The start of the first token beyond the limit; characters of several tokens stay whole.
        end = words[self.max_tokens - self.num_special_tokens][0]
        kept_spans = [tuple(span for span in spans if span[1] <= end) for spans in prompt.spans]
        return replace(
            prompt,
            text=prompt.text[:end],
            spans=tuple(spans for spans in kept_spans if spans),
            classes=tuple(c for c, spans in zip(prompt.classes, kept_spans, strict=True) if spans),
        )

    def _tokenize(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> BatchEncoding:
        if len(texts) == 0:
            return BatchEncoding({"input_ids": [], "offset_mapping": []})
        for text in texts:
            check_unicode(text)
        return self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )


def _load(model: str) -> PreTrainedTokenizerBase:
    source = resolve_model(model)
    vocabulary = Path(source) / VOCABULARY_FILE
    if vocabulary.is_file():
        return read_clip_tokenizer(vocabulary)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise ValueError(_NO_TOKENIZER.format(model)) from error
    # Without a vocabulary transformers builds a tokenizer of special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(_NO_TOKENIZER.format(model))
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {model!r} has no character offsets: choose a model with a fast "
            "tokenizer (tokenizer.json)"
        )
    if is_clip_tokenizer(tokenizer):
        return with_mask_token(tokenizer, source=model)
    return tokenizer
