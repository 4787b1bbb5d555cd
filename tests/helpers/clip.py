"""A stand-in for CLIP's vocabulary, of the same size, and tiny text encoders of CLIP's kind."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel

from glipv2_d2.text.clip_vocabulary import NUM_MERGES, VOCABULARY_FILE

ALPHABET = sorted(ByteLevel.alphabet())
WORDS = ("cat", "dog", "red", "photo", "a", "on", "the", "'s", "cafÃ©", "æĹ¥æľ¬")
# The token of id 49,404 in CLIP's vocabulary, as there, is an emoji.
EMOJI, MASKED = "\N{COUPLE WITH HEART}", ("ðŁĴ", "ĳ</w>")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def _merges() -> Iterator[tuple[str, str]]:
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for end in range(1, len(pieces)):
            yield "".join(pieces[:end]), pieces[end]
    yield from (("ð", "Ł"), ("ðŁ", "Ĵ"))
    # Others, of no letter of English.
    rare = [byte for byte in ALPHABET if not (byte.isascii() and byte.isalpha())]
    yield from itertools.product(reversed(rare), reversed(ALPHABET))


@functools.cache
def stand_in_merges() -> list[tuple[str, str]]:
    by_token = {"".join(merge): merge for merge in reversed(list(_merges()))}
    merges = list(dict.fromkeys(m for m in _merges() if by_token["".join(m)] == m))
    return [*merges[: NUM_MERGES - 2], MASKED, ("x", "q</w>")]


@functools.cache
def vocabulary_directory() -> str:
    """A directory with the vocabulary only, as CLIP publishes it."""
    directory = Path(tempfile.mkdtemp(prefix="clip_vocabulary_"))
    # The published file has more lines than CLIP uses.
    lines = ["title", *(" ".join(merge) for merge in stand_in_merges()), "un used"]
    write_vocabulary(directory, "\n".join(lines))
    return str(directory)


def write_vocabulary(directory: Path, text: str) -> None:
    content = gzip.compress(text.encode(), compresslevel=1)
    (directory / VOCABULARY_FILE).write_bytes(content)


@functools.cache
def tiny_clip_directory() -> str:
    """A text encoder of width 16 without weights, with the vocabulary."""
    directory = Path(tempfile.mkdtemp(prefix="tiny_clip_"))
    vocabulary = Path(vocabulary_directory(), VOCABULARY_FILE)
    (directory / VOCABULARY_FILE).symlink_to(vocabulary)
    CLIPTextConfig(num_hidden_layers=1, **SIZES).save_pretrained(directory)
    return str(directory)


def tokenizer_files(directory: Path) -> None:
    """The vocabulary as transformers publishes it: vocab.json and merges.txt."""
    tokens = [*ALPHABET, *(byte + "</w>" for byte in ALPHABET)]
    tokens += ["".join(merge) for merge in stand_in_merges()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in stand_in_merges())]
    (directory / "merges.txt").write_text("\n".join(lines))


def small_clip() -> CLIPTextModel:
    """Two layers of random weights, 12 positions and a vocabulary of 30 tokens."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=30,
        num_hidden_layers=2,
        max_position_embeddings=12,
        layer_norm_eps=1e-12,
        **SIZES,
    )
    model = CLIPTextModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model
