"""Class names and captions -> :class:`~glipv2_d2.structures.Prompt`.

*name*: a class name as the caller passes it. *cleaned name*: its form in a prompt.
*label*: index into the spans of one prompt. *class*: index into the caller's list of names.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from glipv2_d2.messages import quote
from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import NEGATIVE, Span
from glipv2_d2.text.names import check_names, clean_name, normalized_name
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
        raise ValueError(f"caption {quote(caption)} is empty: describe the objects to detect")
    for phrase in phrases:
        if not phrase:
            raise ValueError(
                f"a phrase of caption {quote(caption)} has no span: pass one or remove it"
            )
        for start, end in phrase:
            if not 0 <= start < end <= len(caption):
                raise ValueError(
                    f"span [{start}, {end}) is outside caption {quote(caption)} of {len(caption)} "
                    "characters: spans are character indices with start < end"
                )
    spans = tuple(tuple((start, end) for start, end in phrase) for phrase in phrases)
    return Prompt(caption, spans, tuple(range(len(spans))))


def known_labels(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    """The prompt of a caption without the labels that have no word in the tokenizer's vocabulary.

    The classes of the others, and the text, stay. A warning names what is left out.

    Raises:
        ValueError: the prompt has labels, and none of them has such a word.
    """
    phrases = prompt.phrases
    is_known = tokenizer.are_known(phrases)
    unknown = [phrase for phrase, known in zip(phrases, is_known, strict=True) if not known]
    if not unknown:
        return prompt
    if len(unknown) == len(phrases):
        raise ValueError(
            f"none of the phrases {quote(unknown)} of caption {quote(prompt.text)} has a word in "
            "the tokenizer's vocabulary: use words of the language that the model was trained on"
        )
    logger.warning(
        "%d phrases have no word in the tokenizer's vocabulary and are never detected: %s",
        len(unknown),
        quote(unknown),
    )
    return _selected_labels(prompt, is_known)


def without_unknown_labels(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    """:func:`known_labels` for training: nothing is logged, and no label may be left."""
    # English words have tokens, so most captions need no tokenization.
    if all(phrase.isascii() for phrase in prompt.phrases):
        return prompt
    return _selected_labels(prompt, tokenizer.are_known(prompt.phrases))


def _selected_labels(prompt: Prompt, is_selected: Sequence[bool]) -> Prompt:
    return replace(
        prompt,
        spans=tuple(itertools.compress(prompt.spans, is_selected)),
        classes=tuple(itertools.compress(prompt.classes, is_selected)),
    )


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

    Three cases are logged as warnings. A duplicate name (:func:`normalized_name`) is used once,
    with its first index. A name without a word in the tokenizer's vocabulary is left out, so that
    nothing is detected for it. Different names with equal tokens are all used, with equal scores:
    "cafe" and "café", but also "fish" and "fish_(food)", because GLIP's prompts omit parentheses.

    Args:
        names: class names; the class of each is its index.
        tokenizer: counts the tokens.
        separator: string between two names.
        max_tokens: limit per prompt, including [CLS] and [SEP].
        max_classes: names per prompt, including negatives; 0: as many as ``max_tokens`` allows.
        negatives: names appended to every prompt, with the class ``NEGATIVE``.
        key: sort key of names and negatives; default: the caller's order.

    Raises:
        ValueError: no names; a name without words or tokens; none with words that are known; a name
            longer than ``max_tokens``; a negative that is also a class; too many negatives; a
            separator that merges two names.
    """
    check_names(names, separator)
    check_separator(separator, tokenizer)
    ids_of_class = _encode_names(names, _drop_duplicates(names), tokenizer)
    negatives = _check_negatives(negatives, names, ids_of_class, separator, tokenizer)
    classes = list(ids_of_class)
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
    lengths = [len(ids_of_class[i]) for i in classes]
    for i, length in zip(classes, lengths, strict=True):
        if length > room:
            beside = f" beside {len(negatives)} negatives" if negatives else ""
            raise ValueError(
                f"class name {quote(names[i])} (index {i}) has {length} tokens, but a prompt has "
                f"room for {room}{beside}: shorten the name or raise max_tokens"
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


def _encode_names(
    names: Sequence[str], classes: Sequence[int], tokenizer: Tokenizer
) -> dict[int, tuple[int, ...]]:
    """The token ids of each class that the tokenizer knows words of; warns of what is not read."""
    encoded = tokenizer.encode([clean_name(names[i]) for i in classes])
    ids_of_class = {i: tuple(ids) for i, ids in zip(classes, encoded, strict=True)}
    for i, ids in ids_of_class.items():
        if not ids:
            raise ValueError(
                f"class name {quote(names[i])} (index {i}) has no characters in the tokenizer's "
                "vocabulary: rename the class"
            )
    known = {i: ids for i, ids in ids_of_class.items() if tokenizer.has_words(ids)}
    unknown = [names[i] for i in ids_of_class if i not in known]
    if not known:
        raise ValueError(none_known(unknown))
    if unknown:
        logger.warning(
            "%d class names have no word in the tokenizer's vocabulary and are never detected: %s",
            len(unknown),
            quote(unknown),
        )
    special_ids = set(tokenizer.special_ids)
    partly = [names[i] for i, ids in known.items() if not special_ids.isdisjoint(ids)]
    if partly:
        logger.warning(
            "%d class names have words outside the tokenizer's vocabulary, which do not "
            "distinguish them: %s",
            len(partly),
            quote(partly),
        )
    _warn_of_equal_tokens(names, known)
    return known


def none_known(names: Sequence[str]) -> str:
    """The message of an error: class names that the tokenizer has no word of."""
    return (
        f"none of the class names {quote(list(names))} has a word in the tokenizer's vocabulary: "
        "use words of the language that the model was trained on"
    )


def _warn_of_equal_tokens(
    names: Sequence[str], ids_of_class: Mapping[int, tuple[int, ...]]
) -> None:
    names_of_ids = defaultdict(list)
    for i, ids in ids_of_class.items():
        names_of_ids[ids].append(names[i])
    groups = [group for group in names_of_ids.values() if len(group) > 1]
    if groups:
        logger.warning(
            "%d groups of class names have equal tokens, hence equal scores and boxes; the first "
            "group is %s",
            len(groups),
            quote(groups[0]),
        )


def _check_negatives(
    negatives: Sequence[str],
    names: Sequence[str],
    ids_of_class: Mapping[int, tuple[int, ...]],
    separator: str,
    tokenizer: Tokenizer,
) -> list[str]:
    """Check the negatives, and return them without duplicates.

    Args:
        ids_of_class: the token ids of the class names; a negative with equal tokens is a class.
    """
    if len(negatives) == 0:
        return []
    check_names(negatives, separator)
    class_of_name = {normalized_name(name): name for name in names}
    class_of_ids = {ids: names[i] for i, ids in ids_of_class.items()}
    first_of: dict[str, str] = {}
    ids_of_negative = tokenizer.encode([clean_name(negative) for negative in negatives])
    for negative, ids in zip(negatives, ids_of_negative, strict=True):
        normalized = normalized_name(negative)
        same = class_of_name.get(normalized) or class_of_ids.get(tuple(ids))
        if same is not None:
            raise ValueError(
                f"{quote(negative)} is a negative and a class ({quote(same)}): remove one"
            )
        if not tokenizer.has_words(ids):
            raise ValueError(
                f"negative {quote(negative)} has no word in the tokenizer's vocabulary: remove it"
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
                "class name %s (index %d) duplicates %s (index %d): it is used once, and its "
                "detections have index %d",
                quote(name),
                i,
                quote(names[first]),
                first,
                first,
            )
    return list(first_of.values())


def check_separator(separator: str, tokenizer: Tokenizer) -> None:
    """Raise a ValueError if two names joined by the separator would share tokens."""
    joined, name, between = tokenizer.encode([f"a{separator}a", "a", separator])
    if joined != name + between + name:
        raise ValueError(
            f"separator {quote(separator)} does not keep two class names apart in the tokenizer: "
            "begin and end it with a blank or a punctuation mark"
        )
