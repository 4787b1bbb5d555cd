"""What the caller asks -> :class:`~glipv2_d2.structures.Prompt`.

*name*: a class name as the caller wrote it. *cleaned name*: as it stands in a prompt.
*label*: index into the spans of one prompt. *class*: index into the caller's list.
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
    """Words around a class name that tell more about it, as GLIP's prompts for ODinW have them.

    ``name`` stands for the class and is what its span covers: "there is a " "package" " on the
    porch". It is used as it is.
    """

    prefix: str
    name: str
    suffix: str


def clean_name(name: str) -> str:
    """A class name as GLIP's prompts spell it (GLIP spec 2.1).

    From the first "(" to the last ")" is left out, "_" becomes a blank, two blanks become one (in
    one pass: three become two). A blank that this leaves at the end stays, as in GLIP.

    >>> clean_name("bat_(animal)")
    'bat '

    A name of which nothing would be left keeps the words in its parentheses (our choice).

    >>> clean_name("(animal)")
    'animal'
    """
    cleaned = _tidy_blanks(re.sub(r"\(.*\)", "", name, flags=re.DOTALL))
    return cleaned if cleaned.strip() else _tidy_blanks(re.sub(r"[()]", " ", name)).strip()


def normalized_name(name: str) -> str:
    """What two spellings of one class name have in common.

    >>> normalized_name("Traffic_Light ")
    'traffic light'
    """
    return " ".join(name.replace("_", " ").split()).casefold()


def _tidy_blanks(name: str) -> str:
    return name.replace("_", " ").replace("  ", " ")


def check_names(names: Sequence[str], separator: str = ". ") -> list[str]:
    """The names as a list, if they can be asked.

    Raises:
        ValueError: one text instead of a list, no names, or a name that is no text or has no words.
    """
    if isinstance(names, str):
        raise ValueError(f"class names must be a list of names, not one string: {names!r}")
    if len(names) == 0:
        raise ValueError("the list of class names is empty: give at least one name")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"class name {name!r} (index {i}) is not text: put it in quotes")
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
    """One prompt of class names, as GLIP's evaluation writes it (GLIP spec 2.1).

    The cleaned names are joined by ``separator``; there is none after the last.

    Args:
        names: the names to ask, one label each.
        separator: what parts two names.
        classes: the caller's class of each name; default 0, 1, 2 ...
        decorations: per name, what to write instead of it.
        suppressed: names asked without a label, after the others and as they are: they draw the
            attention of look-alikes away.

    Raises:
        ValueError: no names, a name without words, or not one decoration per name.
    """
    check_names(names, separator)
    if decorations is None:
        decorations = [Decoration("", clean_name(name), "") for name in names]
    elif len(decorations) != len(names):
        raise ValueError(
            f"{len(decorations)} decorations for {len(names)} class names: give one per name"
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
    """One prompt of class names, as GLIP's demo writes it (GLIP spec 2.2).

    Names are not cleaned, and " . " follows each of them, the last one too.

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
    """A free text of which every phrase is a label and a class.

    Args:
        caption: the text; it is used as it is.
        phrases: for each phrase, its character spans [start, end) in ``caption``. There may be no
            phrases (a caption that names nothing in the image).

    Raises:
        ValueError: an empty caption, a phrase without spans, or a span outside the caption.
    """
    if not caption.strip():
        raise ValueError(f"caption {caption!r} is empty: write what is to be found")
    for phrase in phrases:
        if not phrase:
            raise ValueError(f"a phrase of caption {caption!r} has no span: give one or drop it")
        for start, end in phrase:
            if not 0 <= start < end <= len(caption):
                raise ValueError(
                    f"span [{start}, {end}) is not in caption {caption!r} of {len(caption)} "
                    "characters: spans count characters, start < end"
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
    """Class names in as few prompts as the limits allow, in the caller's order.

    A name that the list has twice is asked once, under its first index, and a warning names it.
    Case, underscores and blanks make no difference; words in parentheses do, although GLIP's
    prompts leave them out: "fish" and "fish_(food)" are two classes with equal scores.

    Args:
        names: class names; their classes are their indices.
        tokenizer: counts the tokens.
        separator: what parts two names.
        max_tokens: of one prompt, [CLS] and [SEP] included.
        max_classes: names of one prompt, negatives included; 0: as many as ``max_tokens`` allows.
        negatives: names that every prompt asks behind its own, under the class ``NEGATIVE``.
        key: ask the names sorted by it, negatives among them; default: the caller's order.

    Raises:
        ValueError: no names; a name without words or tokens; a name longer than ``max_tokens``; a
            negative that is also a class, or negatives that leave no room; a separator that would
            not part two names.
    """
    check_names(names, separator)
    check_separator(separator, tokenizer)
    competing = _check_negatives(negatives, names, separator, tokenizer)
    classes = _drop_duplicates(names)
    if key is not None:
        classes.sort(key=lambda i: key(names[i]))
    gap = tokenizer.count(separator)
    room = max_tokens - tokenizer.num_special_tokens - gap * len(competing)
    room -= sum(tokenizer.counts([clean_name(name) for name in competing]))
    if competing and (room <= 0 or 0 < max_classes <= len(competing)):
        raise ValueError(
            f"{len(competing)} negatives leave no room for a class: give fewer, or raise "
            "MODEL.PROMPT.MAX_TOKENS and MODEL.PROMPT.MAX_CLASSES"
        )
    if max_classes > 0:
        max_classes -= len(competing)
    lengths = tokenizer.counts([clean_name(names[i]) for i in classes])
    for i, length in zip(classes, lengths, strict=True):
        if length == 0:
            raise ValueError(
                f"class name {names[i]!r} (index {i}) has no character that the tokenizer reads: "
                "rename the class"
            )
        if length > room:
            beside = f" beside {len(competing)} negatives" if competing else ""
            raise ValueError(
                f"class name {names[i]!r} (index {i}) has {length} tokens, a prompt has room for "
                f"{room}{beside}: shorten the name or raise MODEL.PROMPT.MAX_TOKENS"
            )
    prompts = []
    for chunk in _chunks(classes, lengths, gap=gap, room=room, max_classes=max_classes):
        asked = [(names[i], i) for i in chunk] + [(name, NEGATIVE) for name in competing]
        if key is not None:
            asked.sort(key=lambda name_and_class: key(name_and_class[0]))
        names_of_prompt, classes_of_prompt = zip(*asked, strict=True)
        prompts.append(
            class_prompt(names_of_prompt, separator=separator, classes=classes_of_prompt)
        )
    return prompts


def _check_negatives(
    negatives: Sequence[str], names: Sequence[str], separator: str, tokenizer: Tokenizer
) -> list[str]:
    """The negatives, each once."""
    if len(negatives) == 0:
        return []
    check_names(negatives, separator)
    asked = {normalized_name(name): name for name in names}
    first_of: dict[str, str] = {}
    for negative in negatives:
        same = normalized_name(negative)
        if same in asked:
            raise ValueError(
                f"{negative!r} is a negative and a class ({asked[same]!r}): decide for one"
            )
        if tokenizer.count(clean_name(negative)) == 0:
            raise ValueError(
                f"negative {negative!r} has no character that the tokenizer reads: leave it out"
            )
        first_of.setdefault(same, negative)
    return list(first_of.values())


def _chunks(
    classes: Sequence[int], lengths: Sequence[int], *, gap: int, room: int, max_classes: int
) -> Iterator[list[int]]:
    """Fill one prompt after the other. ``gap``: tokens of a separator; ``room``: of a prompt."""
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
    """Indices of the names that are asked, each the first of its duplicates."""
    first_of: dict[str, int] = {}
    for i, name in enumerate(names):
        first = first_of.setdefault(normalized_name(name), i)
        if first != i:
            logger.warning(
                "class name %r (index %d) repeats %r (index %d): it is asked once, and its "
                "detections carry index %d",
                name,
                i,
                names[first],
                first,
                first,
            )
    return list(first_of.values())


def check_separator(separator: str, tokenizer: Tokenizer) -> None:
    """Raise a ValueError where two names would run together and share tokens."""
    joined, name, between = tokenizer.pieces([f"a{separator}a", "a", separator])
    if joined != name + between + name:
        raise ValueError(
            f"MODEL.PROMPT.SEPARATOR {separator!r} does not part two class names for the "
            "tokenizer: begin and end it with a blank or a punctuation mark"
        )
