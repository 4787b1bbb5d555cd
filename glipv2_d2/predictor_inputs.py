"""Prompts, questions and captions -> the text fields of each image's input dict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import check_answers
from glipv2_d2.text.noun_phrases import noun_phrases

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
        raise ValueError(f"negatives={negatives!r} require classes, not a caption")
    if caption is not None and classes is None:
        return [_caption_fields(caption, phrases)] * num_images
    if classes is None or caption is not None:
        raise ValueError(
            f"pass either classes or a caption: classes={classes!r}, caption={caption!r}"
        )
    if phrases is not None:
        raise ValueError(f"phrases={phrases!r} require a caption, not classes")
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
    """One list of class names per image. The model validates the names themselves."""
    if isinstance(names, str):
        raise ValueError(f"{argument} must be a list of strings, not {names!r}: split it first")
    is_one_list = all(isinstance(name, str) for name in names)
    lists: list[Any] = [names] * num_images if is_one_list else list(names)
    if len(lists) != num_images:
        raise ValueError(f"{len(lists)} lists of {argument} for {num_images} images")
    for item in lists:
        if isinstance(item, str):
            raise ValueError(f"{argument} mixes strings and lists: {item!r} is not in a list")
    return [list(item) for item in lists]


def question_fields(
    num_images: int, questions: str | Sequence[str], choices: Sequence[str] | None, *, ground: bool
) -> list[dict[str, Any]]:
    """Fields of a question for each image.

    Args:
        questions: one for all images, or one per image.
        choices: candidate answers; None: the answer vocabulary of the model.
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
                f"image {i} of {num_images} has the {kind} {string!r}: pass a non-empty string"
            )
    return per_image


def _caption_fields(caption: str, phrases: Sequence[Phrase] | None) -> dict[str, Any]:
    """Fields of a caption and its phrases, by default its noun phrases."""
    if not re.search(r"\w", caption):
        raise ValueError(f"the caption {caption!r} contains no words")
    if isinstance(phrases, str):
        raise ValueError(f"phrases must be a list, not the string {phrases!r}")
    if phrases is None:
        spans_per_phrase = noun_phrases(caption)
        if not spans_per_phrase:
            raise ValueError(
                f"no noun phrase was found in the caption {caption!r}; "
                "pass phrases=[...] or class names"
            )
    else:
        spans_per_phrase = [_phrase_spans(caption, phrase) for phrase in phrases]
        if not spans_per_phrase:
            raise ValueError(f"phrases is empty; pass phrases of {caption!r}, or omit it")
    return {fields.CAPTION: caption, fields.PHRASES: spans_per_phrase}


def _phrase_spans(caption: str, phrase: Phrase) -> list[Span]:
    if not isinstance(phrase, str):
        try:
            return [(int(start), int(end)) for start, end in phrase]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the phrase {phrase!r} is neither a string nor a list of character spans "
                f"[start, end) of the caption {caption!r}"
            ) from error
    match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)
    if not phrase.strip() or match is None:
        raise ValueError(f"the phrase {phrase!r} is not in the caption {caption!r}; copy its words")
    return [match.span()]
