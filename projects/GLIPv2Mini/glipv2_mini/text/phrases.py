"""What a referring phrase names and how it describes it: "the smaller red book on the left"."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

COLOR_NAMES = (
    *("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white"),
    "yellow",
)
"""The basic colour terms of English (Berlin and Kay, 1969)."""
COLOR_OF = {**{name: name for name in COLOR_NAMES}, "grey": "gray", "violet": "purple"}
"""A word -> the colour of :data:`COLOR_NAMES` that it means."""

# What follows one of these describes the object. "of" is missing, as in "cup of tea" it belongs to
# the name.
_AFTER_NAME = re.compile(
    r"\s(?:in|on|at|with|without|behind|near|to|by|under|above|below|beside|next|that|which|who|"
    r"whose|holding|wearing|carrying|facing|standing|sitting|lying|from|inside|over|"
    r"against|between|left of|right of)\s.*",
    re.DOTALL,
)
# The place of the object by another one, which the words after it describe.
_OTHER_THING = re.compile(
    r"\s(?:near|next|behind|beside|under|above|below|between|against|over|"
    r"(?:to |on |at |in )?(?:the )?(?:front|back|left|right|top|bottom|middle|side) of)\s.*",
    re.DOTALL,
)
_ARTICLES = frozenset({"a", "an", "the", "this", "that"})

# Right, down, larger. What is in front is lower and larger.
_DIRECTION_OF: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(("left", "leftmost"), (-1, 0, 0)),
    **dict.fromkeys(("right", "rightmost"), (1, 0, 0)),
    **dict.fromkeys(("top", "upper", "uppermost", "topmost"), (0, -1, 0)),
    **dict.fromkeys(("bottom", "lower", "lowest"), (0, 1, 0)),
    **dict.fromkeys(
        [
            "large",
            "larger",
            "largest",
            "big",
            "bigger",
            "biggest",
            "huge",
            "tall",
            "taller",
            "tallest",
            "adult",
        ],
        (0, 0, 1),
    ),
    **dict.fromkeys(
        [
            "small",
            "smaller",
            "smallest",
            "little",
            "tiny",
            "short",
            "shorter",
            "shortest",
            "baby",
            "young",
        ],
        (0, 0, -1),
    ),
    **dict.fromkeys(("front", "foreground", "closest", "nearest", "closer"), (0, 0.7, 0.7)),
    **dict.fromkeys(("back", "background", "rear", "distant", "farthest"), (0, -0.7, -0.7)),
}
_UNNAMED = frozenset({"middle", "central", "center", "first", "last", "other", "and"})
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class PhraseParts:
    """The parts of a phrase.

    Attributes:
        name: what it names, in lower case.
        direction: where the object is among others of the name: right, down, larger, each positive,
            negative or 0.
        colors: of :data:`COLOR_NAMES`.
    """

    name: str
    direction: tuple[float, float, float] = (0.0, 0.0, 0.0)
    colors: frozenset[str] = frozenset()


def parse_phrase(phrase: str) -> PhraseParts:
    """The parts of an English noun phrase, by its words (our choice).

    Class names are their own name: places, sizes and colours before a name count after an article
    only, as a "black bear" is not just any bear.

    >>> parse_phrase("The smaller book on the left")
    PhraseParts(name='book', direction=(-1.0, 0.0, -1.0), colors=frozenset())
    >>> parse_phrase("the man in the white shirt").colors, parse_phrase("black bear").name
    (frozenset({'white'}), 'black bear')
    """
    text = " ".join(phrase.lower().split())
    cut = _AFTER_NAME.search(" " + text)
    name_words = text[: cut.start()].split() if cut else text.split()
    after = text[cut.start() :] if cut else ""
    described: list[str] = []
    if name_words and name_words[0] in _ARTICLES:
        words = name_words[1:] or name_words
        start = next((i for i, word in enumerate(words) if not _describes(word)), len(words) - 1)
        described, name_words = words[:start], words[start:]
    around = _WORD.findall(f"{' '.join(described)} {_OTHER_THING.sub('', after)}")
    directions = [_DIRECTION_OF[word] for word in around if word in _DIRECTION_OF]
    right, down, larger = (float(sum(axis)) for axis in zip((0, 0, 0), *directions, strict=True))
    colors = frozenset(COLOR_OF[word] for word in around if word in COLOR_OF)
    return PhraseParts(" ".join(name_words) or text, (right, down, larger), colors)


def core_phrase(phrase: str) -> str:
    """What a phrase names, see :class:`PhraseParts`.

    >>> core_phrase("the red car on the left")
    'car'
    """
    return parse_phrase(phrase).name


@functools.lru_cache(maxsize=8192)
def describe_phrase(phrase: str) -> tuple[float, ...]:
    """Right, down and larger, then 1 for each of :data:`COLOR_NAMES` that the phrase has, or 0.

    >>> describe_phrase("the left dog")[:3]
    (-1.0, 0.0, 0.0)
    """
    parts = parse_phrase(phrase)
    return (*parts.direction, *(float(name in parts.colors) for name in COLOR_NAMES))


def _describes(word: str) -> bool:
    word = word.strip(",")
    return word in _DIRECTION_OF or word in COLOR_OF or word in _UNNAMED
