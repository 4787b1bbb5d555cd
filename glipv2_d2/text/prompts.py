"""Class names and captions -> :class:`~glipv2_d2.structures.Prompt`.

*name*: a class name as the caller passes it. *cleaned name*: its form in a prompt.
*label*: index into the spans of one prompt. *class*: index into the caller's list of names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import NEGATIVE, Span
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEMO_SEPARATOR = " . "


class Decoration(NamedTuple):
    """A class name with words around it that describe it, as in GLIP's prompts for ODinW.

    The label's span covers ``name`` alone: "there is a " "package" " on the porch". All three parts
    are used verbatim.
    """

    prefix: str
    name: str
    suffix: str


def clean_name(name: str) -> str:
    """Clean a class name as GLIP does (glip_reference.md 2.1).

    Everything from the first "(" to the last ")" is removed, "_" becomes a blank, and two blanks
    become one (in one pass: three become two). A blank left at the end is kept, as in GLIP.

    >>> clean_name("bat_(animal)")
    'bat '

    If nothing would be left, the words in parentheses are kept (unlike GLIP).

    >>> clean_name("(animal)")
    'animal'
    """
    cleaned = _normalize_blanks(re.sub(r"\(.*\)", "", name, flags=re.DOTALL))
    return cleaned if cleaned.strip() else _normalize_blanks(re.sub(r"[()]", " ", name)).strip()


def normalized_name(name: str) -> str:
    """A key that equates spellings of a class name: case, underscores and blanks.

    >>> normalized_name("Traffic_Light ")
    'traffic light'
    """
    return " ".join(name.replace("_", " ").split()).casefold()


def _normalize_blanks(name: str) -> str:
    return name.replace("_", " ").replace("  ", " ")


def check_names(names: Sequence[str], separator: str = ". ") -> list[str]:
    """Check a list of class names, and return it as a list.

    Raises:
        ValueError: ``names`` is a string or empty, or a name is not a string or has no words.
    """
    if isinstance(names, str):
        raise ValueError(f"class names must be a list of names, not one string: {names!r}")
    if len(names) == 0:
        raise ValueError("the list of class names is empty: pass at least one name")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"class name {name!r} (index {i}) is not a string: put it in quotes")
        if not clean_name(name).replace(separator.strip(), "").strip():
            raise ValueError(
                f"class name {name!r} (index {i} of {len(names)}) has no words: remove or rename it"
            )
    return list(names)


def class_prompt(
    names: Sequence[str],
    *,
    separator: str = ". ",
    classes: Sequence[int] | None = None,
    decorations: Sequence[Decoration] | None = None,
    suppressed: Sequence[str] = (),
) -> Prompt:
    """Build one prompt of class names in the format of GLIP's evaluation (glip_reference.md 2.1).

    The cleaned names are joined by ``separator``, with none after the last.

    Args:
        names: class names, one label each.
        separator: string between two names.
        classes: the caller's class of each name; default 0, 1, 2 ...
        decorations: per name, the text that replaces it.
        suppressed: names without a label that are appended verbatim, to absorb the scores of
            similar objects.

    Raises:
        ValueError: no names, a name without words, or not one decoration per name.
    """
    check_names(names, separator)
    if decorations is None:
        decorations = [Decoration("", clean_name(name), "") for name in names]
    elif len(decorations) != len(names):
        raise ValueError(
            f"{len(decorations)} decorations for {len(names)} class names: pass one per name"
        )
    check_names([decoration.name for decoration in decorations], separator)
    text = separator.join(["".join(decoration) for decoration in decorations] + [*suppressed])
    spans: list[tuple[Span, ...]] = []
    position = 0
    for prefix, name, suffix in decorations:
        start = position + len(prefix)
        end = start + len(name)
        spans.append(((start, end),))
        position = end + len(suffix) + len(separator)
    return Prompt(
        text,
        tuple(spans),
        tuple(range(len(names)) if classes is None else classes),
        is_class_list=True,
    )


def demo_prompt(names: Sequence[str]) -> Prompt:
    """Build one prompt of class names in the format of GLIP's demo (glip_reference.md 2.2).

    Names are not cleaned, and " . " follows each of them, including the last.

    Raises:
        ValueError: no names, or a name without words.
    """
    check_names(names, DEMO_SEPARATOR)
    spans: list[tuple[Span, ...]] = []
    position = 0
    for name in names:
        spans.append(((position, position + len(name)),))
        position += len(name) + len(DEMO_SEPARATOR)
    text = "".join(name + DEMO_SEPARATOR for name in names)
    return Prompt(text, tuple(spans), tuple(range(len(names))), is_class_list=True)


def caption_prompt(caption: str, phrases: Sequence[Sequence[Span]]) -> Prompt:
    """Build the prompt of a caption; every phrase is a label and a class.

    Args:
        caption: the text, used verbatim.
        phrases: for each phrase, its character spans [start, end) in ``caption``; may be empty.

    Raises:
        ValueError: an empty caption, a phrase without spans, or a span outside the caption.
    """
    if not caption.strip():
        raise ValueError(f"caption {caption!r} is empty: describe the objects to detect")
    for phrase in phrases:
        if not phrase:
            raise ValueError(f"a phrase of caption {caption!r} has no span: pass one or remove it")
        for start, end in phrase:
            if not 0 <= start < end <= len(caption):
                raise ValueError(
                    f"span [{start}, {end}) is outside caption {caption!r} of {len(caption)} "
                    "characters: spans are character indices with start < end"
                )
    spans = tuple(tuple((start, end) for start, end in phrase) for phrase in phrases)
    return Prompt(caption, spans, tuple(range(len(spans))))


def class_prompts(
    names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    separator: str = ". ",
    max_tokens: int = 256,
    max_classes: int = 0,
    negatives: Sequence[str] = (),
    key: Callable[[str], Any] | None = None,
) -> list[Prompt]:
    """Split class names into as few prompts as the limits allow, in the caller's order.

    A duplicate name is used once, with its first index, and logged as a warning. Names that differ
    only in case, underscores or blanks are duplicates. Names that differ in parentheses are not,
    although GLIP's prompts omit these: "fish" and "fish_(food)" are two classes with equal scores.

    Args:
        names: class names; the class of each is its index.
        tokenizer: counts the tokens.
        separator: string between two names.
        max_tokens: limit per prompt, including [CLS] and [SEP].
        max_classes: names per prompt, including negatives; 0: as many as ``max_tokens`` allows.
        negatives: names appended to every prompt, with the class ``NEGATIVE``.
        key: sort key of names and negatives; default: the caller's order.

    Raises:
        ValueError: no names; a name without words or tokens; a name longer than ``max_tokens``; a
            negative that is also a class; too many negatives; a separator that merges two names.
    """
    check_names(names, separator)
    check_separator(separator, tokenizer)
    negatives = _check_negatives(negatives, names, separator, tokenizer)
    classes = _drop_duplicates(names)
    if key is not None:
        classes.sort(key=lambda i: key(names[i]))
    gap = tokenizer.count(separator)
    room = max_tokens - tokenizer.num_special_tokens - gap * len(negatives)
    room -= sum(tokenizer.counts([clean_name(name) for name in negatives]))
    if negatives and (room <= 0 or 0 < max_classes <= len(negatives)):
        raise ValueError(
            f"{len(negatives)} negatives leave no room for a class: pass fewer, or raise "
            "max_tokens and max_classes"
        )
    if max_classes > 0:
        max_classes -= len(negatives)
    lengths = tokenizer.counts([clean_name(names[i]) for i in classes])
    for i, length in zip(classes, lengths, strict=True):
        if length == 0:
            raise ValueError(
                f"class name {names[i]!r} (index {i}) has no characters in the tokenizer's "
                "vocabulary: rename the class"
            )
        if length > room:
            beside = f" beside {len(negatives)} negatives" if negatives else ""
            raise ValueError(
                f"class name {names[i]!r} (index {i}) has {length} tokens, but a prompt has room "
                f"for {room}{beside}: shorten the name or raise max_tokens"
            )
    prompts = []
    for chunk in _chunks(classes, lengths, gap=gap, room=room, max_classes=max_classes):
        entries = [(names[i], i) for i in chunk] + [(name, NEGATIVE) for name in negatives]
        if key is not None:
            entries.sort(key=lambda name_and_class: key(name_and_class[0]))
        names_of_prompt, classes_of_prompt = zip(*entries, strict=True)
        prompts.append(
            class_prompt(names_of_prompt, separator=separator, classes=classes_of_prompt)
        )
    return prompts


def _check_negatives(
    negatives: Sequence[str], names: Sequence[str], separator: str, tokenizer: Tokenizer
) -> list[str]:
    """Check the negatives, and return them without duplicates."""
    if len(negatives) == 0:
        return []
    check_names(negatives, separator)
    class_of = {normalized_name(name): name for name in names}
    first_of: dict[str, str] = {}
    for negative in negatives:
        normalized = normalized_name(negative)
        if normalized in class_of:
            raise ValueError(
                f"{negative!r} is a negative and a class ({class_of[normalized]!r}): remove one"
            )
        if tokenizer.count(clean_name(negative)) == 0:
            raise ValueError(
                f"negative {negative!r} has no characters in the tokenizer's vocabulary: remove it"
            )
        first_of.setdefault(normalized, negative)
    return list(first_of.values())


def _chunks(
    classes: Sequence[int], lengths: Sequence[int], *, gap: int, room: int, max_classes: int
) -> Iterator[list[int]]:
    """Group classes into prompts. ``gap``: tokens of a separator; ``room``: tokens of a prompt."""
    chunk: list[int] = []
    used = 0
    for i, length in zip(classes, lengths, strict=True):
        is_full = max_classes > 0 and len(chunk) == max_classes
        if chunk and (is_full or used + gap + length > room):
            yield chunk
            chunk, used = [], 0
        used += length + (gap if chunk else 0)
        chunk.append(i)
    yield chunk


def _drop_duplicates(names: Sequence[str]) -> list[int]:
    """The index of each different name; of duplicates, the first."""
    first_of: dict[str, int] = {}
    for i, name in enumerate(names):
        first = first_of.setdefault(normalized_name(name), i)
        if first != i:
            logger.warning(
                "class name %r (index %d) duplicates %r (index %d): it is used once, and its "
                "detections have index %d",
                name,
                i,
                names[first],
                first,
                first,
            )
    return list(first_of.values())


def check_separator(separator: str, tokenizer: Tokenizer) -> None:
    """Raise a ValueError if two names joined by the separator would share tokens."""
    joined, name, between = tokenizer.encode([f"a{separator}a", "a", separator])
    if joined != name + between + name:
        raise ValueError(
            f"separator {separator!r} does not keep two class names apart in the tokenizer: begin "
            "and end it with a blank or a punctuation mark"
        )
