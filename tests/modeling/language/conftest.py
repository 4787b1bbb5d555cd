"""A BERT of width 16 with a vocabulary of a few words, and a tokenizer of such words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from glipv2_d2.structures import Prompt, TokenBatch

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    ".",
    "a",
    "cat",
    "dog",
    "red",
    "car",
    "on",
    "the",
    "sea",
    "lion",
]
SEPARATOR = "."


def _tokenize(*texts: str, labels: Sequence[Sequence[str]] | None = None) -> TokenBatch:
    """Tokenize prompts whose words are separated by blanks.

    Args:
        texts: one prompt each.
        labels: for each prompt the phrases that are its labels, each once in the text; default:
            the parts between separators.
    """
    prompts, ids_per_prompt, maps = [], [], []
    for row, text in enumerate(texts):
        words = text.split()
        phrases = text.split(f" {SEPARATOR} ") if labels is None else labels[row]
        spans, positive_map = [], torch.zeros(len(phrases), len(words) + 2, dtype=torch.bool)
        end = 0
        for label, phrase in enumerate(phrases):
            # Class names follow each other; phrases of a caption may overlap.
            start = text.index(phrase, end if labels is None else 0)
            end = start + len(phrase)
            first = 1 + len(text[:start].split())
            positive_map[label, first : first + len(phrase.split())] = True
            spans.append(((start, end),))
        prompts.append(Prompt(text, tuple(spans), tuple(range(len(phrases)))))
        ids_per_prompt.append(torch.tensor([1, *map(WORDS.index, words), 2]))
        maps.append(positive_map)
    input_ids = torch.nn.utils.rnn.pad_sequence(ids_per_prompt, batch_first=True)
    num_tokens = input_ids.shape[1]
    return TokenBatch(
        input_ids=input_ids,
        mask=input_ids != 0,
        positive_maps=tuple(torch.nn.functional.pad(m, (0, num_tokens - m.shape[1])) for m in maps),
        noun_maps=tuple(torch.zeros(0, num_tokens, dtype=torch.bool) for _ in prompts),
        prompts=tuple(prompts),
    )


@pytest.fixture
def tokenize() -> Callable[..., TokenBatch]:
    return _tokenize


@pytest.fixture
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture
def bert_directory(tmp_path: Path, bert: BertModel) -> Path:
    """A saved BERT: config.json and weights."""
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"
