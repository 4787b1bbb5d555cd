"""Prompts, questions and captions -> the text fields of each image's input dict."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from glipv2_d2.messages import quote
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import check_answers
from glipv2_d2.text.limits import check_text
from glipv2_d2.text.noun_phrases import noun_phrases, separated_phrases

Phrase = str | Sequence[Span]
"""A phrase of a caption: its words, or its character spans [start, end)."""

ClassNames = Sequence[str] | Sequence[Sequence[str]]
"""One list of class names for all images, or one list per image."""


def prompt_fields(
    num_images: int,
    classes: ClassNames | None,
    negatives: ClassNames | None,
    caption: str | None,
    phrases: Sequence[Phrase] | None,
) -> list[dict[str, Any]]:
    """Fields of a detection prompt for each image; arguments as in :meth:`Predictor.predict`."""
    if caption is not None and negatives is not None:
        raise ValueError(f"negatives={quote(negatives)} require classes, not a caption")
    if caption is not None and classes is None:
        return [_caption_fields(caption, phrases)] * num_images
    if classes is None or caption is not None:
        raise ValueError(
            f"pass either classes or a caption: classes={quote(classes)}, caption={quote(caption)}"
        )
    if phrases is not None:
        raise ValueError(f"phrases={quote(phrases)} require a caption, not classes")
    classes_per_image = _list_per_image(num_images, "classes", classes)
    if not all(classes_per_image):
        raise ValueError("the list of class names is empty; pass at least one class name")
    if negatives is None:
        return [{fields.CLASSES: names} for names in classes_per_image]
    negatives_per_image = _list_per_image(num_images, "negatives", negatives)
    return [
        {fields.CLASSES: names, fields.NEGATIVES: negatives}
        for names, negatives in zip(classes_per_image, negatives_per_image, strict=True)
    ]


def _list_per_image(num_images: int, argument: str, names: ClassNames) -> list[list[str]]:
    """One list of class names per image.

    Their lengths are checked, before an image is encoded; the model validates the names themselves.
    """
    if isinstance(names, str):
        raise ValueError(
            f"{argument} must be a list of strings, not {quote(names)}: split it first"
        )
    is_one_list = all(isinstance(name, str) for name in names)
    lists: list[Any] = [names] * num_images if is_one_list else list(names)
    if len(lists) != num_images:
        raise ValueError(f"{len(lists)} lists of {argument} for {num_images} images")
    for item in lists:
        if isinstance(item, str):
            raise ValueError(f"{argument} mixes strings and lists: {quote(item)} is not in a list")
    for item in lists[:1] if is_one_list else lists:
        for name in item:
            if isinstance(name, str):
                check_text(name, "class name")
    return [list(item) for item in lists]


def question_fields(
    num_images: int, questions: str | Sequence[str], choices: Sequence[str] | None, *, ground: bool
) -> list[dict[str, Any]]:
    """Fields of a question for each image.

    Args:
        questions: one for all images, or one per image.
        choices: candidate answers; None: the model decides, see :meth:`AnswerHead.choices_of`.
        ground: whether to ground the phrases of the question and the answer.

    Raises:
        ValueError: an image without a question, or invalid choices.
    """
    common: dict[str, Any] = {fields.GROUND: ground}
    if choices is not None:
        common[fields.CHOICES] = check_answers(choices, "choices")
    return [
        {fields.QUESTION: question, **common}
        for question in _string_per_image(num_images, "question", questions)
    ]


def grounding_fields(num_images: int, captions: str | Sequence[str]) -> list[dict[str, Any]]:
    """Fields of a caption whose noun phrases are grounded, for each image.

    Args:
        captions: one for all images, or one per image.

    Raises:
        ValueError: an image without a caption, or a caption without a noun phrase.
    """
    return [
        _caption_fields(caption, None)
        for caption in _string_per_image(num_images, "caption", captions)
    ]


def _string_per_image(num_images: int, kind: str, strings: str | Sequence[str]) -> list[str]:
    """One non-empty string per image, from one for all images or one per image."""
    per_image = [strings] * num_images if isinstance(strings, str) else list(strings)
    if len(per_image) != num_images:
        raise ValueError(
            f"{len(per_image)} {kind}s for {num_images} images: pass one for all, or one per image"
        )
    for i, string in enumerate(per_image):
        if not isinstance(string, str) or not string.strip():
            raise ValueError(
                f"image {i} of {num_images} has the {kind} {quote(string)}: pass a non-empty string"
            )
        check_text(string, kind)
    return per_image


def _caption_fields(caption: str, phrases: Sequence[Phrase] | None) -> dict[str, Any]:
    """Fields of a caption and its phrases.

    Default phrases are the parts of a caption such as "cat . dog .", else the noun phrases.
    """
    check_text(caption, "caption")
    if not re.search(r"\w", caption):
        raise ValueError(f"the caption {quote(caption)} contains no words")
    if isinstance(phrases, str):
        raise ValueError(f"phrases must be a list, not the string {quote(phrases)}")
    if phrases is None:
        spans_per_phrase = separated_phrases(caption) or noun_phrases(caption)
        if not spans_per_phrase:
            raise ValueError(
                f"no noun phrase was found in the caption {quote(caption)}; "
                "pass phrases=[...] or class names"
            )
    else:
        spans_per_phrase = _spans_per_phrase(caption, phrases)
        if not spans_per_phrase:
            raise ValueError(f"phrases is empty; pass phrases of {quote(caption)}, or omit it")
    return {fields.CAPTION: caption, fields.PHRASES: spans_per_phrase}


def _spans_per_phrase(caption: str, phrases: Sequence[Phrase]) -> list[list[Span]]:
    """The spans of each phrase; phrases that are passed as words have different spans.

    Of a word that occurs several times, each phrase gets the first occurrence outside the longer
    phrases and those before it, so that "cat" of ["red cat", "cat"] is the other cat, if there is
    one.
    """
    spans_of = {
        i: _check_spans(caption, p) for i, p in enumerate(phrases) if not isinstance(p, str)
    }
    taken: set[Span] = set()
    words = [(i, phrase) for i, phrase in enumerate(phrases) if isinstance(phrase, str)]
    for i, phrase in sorted(words, key=lambda item: -len(item[1])):
        # Before it becomes a pattern.
        check_text(phrase, "phrase")
        occurrences = _occurrences(caption, phrase)
        free = [span for span in occurrences if span not in taken]
        if not free:
            raise ValueError(
                f"the phrase {quote(phrase)} is not in the caption {quote(caption)}; copy its words"
                if not occurrences
                else f"the phrase {quote(phrase)} is passed more often than its {len(occurrences)} "
                f"times in the caption {quote(caption)}: remove it"
            )
        outside = (s for s in free if all(s[1] <= start or end <= s[0] for start, end in taken))
        span = next(outside, free[0])
        taken.add(span)
        spans_of[i] = [span]
    return [spans_of[i] for i in range(len(phrases))]


def _check_spans(caption: str, phrase: Sequence[Span]) -> list[Span]:
    try:
        return [(int(start), int(end)) for start, end in phrase]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the phrase {quote(phrase)} is neither a string nor a list of character spans "
            f"[start, end) of the caption {quote(caption)}"
        ) from error


def _occurrences(caption: str, phrase: str) -> list[Span]:
    """Where whole words of the caption spell the phrase, in any case or Unicode form."""
    if not phrase.strip():
        return []
    forms = {phrase, *(unicodedata.normalize(form, phrase) for form in ("NFC", "NFD"))}
    pattern = rf"(?<!\w)(?=({'|'.join(map(re.escape, forms))})(?!\w))"
    return [match.span(1) for match in re.finditer(pattern, caption, re.IGNORECASE)]
