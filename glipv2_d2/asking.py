"""What a caller asks -> the fields of a model's input dict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.answers import check_answers
from glipv2_d2.text.noun_phrases import noun_phrases

Phrase = str | Sequence[Span]
"""A phrase of a caption: its words, or the character spans [start, end) that spell it."""

ClassNames = Sequence[str] | Sequence[Sequence[str]]
"""What to look for: one list of names for all images, or one list per image."""


def prompt_per_image(
    num_images: int,
    classes: ClassNames | None,
    negatives: ClassNames | None,
    caption: str | None,
    phrases: Sequence[Phrase] | None,
) -> list[dict[str, Any]]:
    """The prompt's part of each image's input dict."""
    if caption is not None and negatives is not None:
        raise ValueError(f"negatives={negatives!r} belong to classes, not to a caption")
    if caption is not None and classes is None:
        return [_caption_fields(caption, phrases)] * num_images
    if classes is None or caption is not None:
        raise ValueError(
            f"give classes or a caption, one of the two: classes={classes!r}, caption={caption!r}"
        )
    if phrases is not None:
        raise ValueError(f"phrases={phrases!r} belong to a caption, not to classes")
    names_per_image = _list_per_image(num_images, "classes", classes)
    if not all(names_per_image):
        raise ValueError("the list of class names is empty; name at least one thing to look for")
    if negatives is None:
        return [{fields.CLASSES: names} for names in names_per_image]
    negatives_per_image = _list_per_image(num_images, "negatives", negatives)
    return [
        {fields.CLASSES: names, fields.NEGATIVES: negatives}
        for names, negatives in zip(names_per_image, negatives_per_image, strict=True)
    ]


def _list_per_image(num_images: int, what: str, names: ClassNames) -> list[list[str]]:
    """The names of each image; the model checks the names themselves."""
    if isinstance(names, str):
        raise ValueError(f"{what} is a list of names, not the text {names!r}: split it first")
    is_one_list = all(isinstance(name, str) for name in names)
    lists: list[Any] = [names] * num_images if is_one_list else list(names)
    if len(lists) != num_images:
        raise ValueError(f"{len(lists)} lists of {what} for {num_images} images")
    for of_image in lists:
        if isinstance(of_image, str):
            raise ValueError(
                f"{what} mixes names and lists of names: {of_image!r} is not in a list"
            )
    return [list(of_image) for of_image in lists]


def question_per_image(
    num_images: int, questions: str | Sequence[str], choices: Sequence[str] | None, *, ground: bool
) -> list[dict[str, Any]]:
    """The fields of each image's question.

    Args:
        questions: one for all images, or one per image.
        choices: the answers to choose from; None: the model's.
        ground: its phrases are to be found.

    Raises:
        ValueError: an image has no question, or the choices are none.
    """
    asked: dict[str, Any] = {fields.GROUND: ground}
    if choices is not None:
        asked[fields.CHOICES] = check_answers(choices, "choices")
    return [
        {fields.QUESTION: question, **asked}
        for question in _text_per_image(num_images, "question", questions)
    ]


def caption_per_image(num_images: int, captions: str | Sequence[str]) -> list[dict[str, Any]]:
    """The fields of each image's caption, whose noun phrases are to be found.

    Args:
        captions: one for all images, or one per image.

    Raises:
        ValueError: an image has no caption, or one has no noun phrase.
    """
    return [
        _caption_fields(caption, None)
        for caption in _text_per_image(num_images, "caption", captions)
    ]


def _text_per_image(num_images: int, what: str, texts: str | Sequence[str]) -> list[str]:
    """The text of each image.

    Args:
        texts: one for all, or one per image.

    Raises:
        ValueError: an image has none, or one is no text.
    """
    per_image = [texts] * num_images if isinstance(texts, str) else list(texts)
    if len(per_image) != num_images:
        raise ValueError(
            f"{len(per_image)} {what}s for {num_images} images: give one for all, or one per image"
        )
    for i, text in enumerate(per_image):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"image {i} of {num_images} has the {what} {text!r}: write one")
    return per_image


def _caption_fields(caption: str, phrases: Sequence[Phrase] | None) -> dict[str, Any]:
    """The fields of a caption whose phrases, by default the noun phrases, are to be found."""
    if not re.search(r"\w", caption):
        raise ValueError(f"the caption {caption!r} has no word; write what to look for")
    if isinstance(phrases, str):
        raise ValueError(f"phrases is a list, not the text {phrases!r}: put it in a list")
    if phrases is None:
        spans_per_phrase = noun_phrases(caption)
        if not spans_per_phrase:
            raise ValueError(
                f"no noun phrase was found in the caption {caption!r}; "
                "name them yourself (phrases=[...]) or give class names"
            )
    else:
        spans_per_phrase = [_phrase_spans(caption, phrase) for phrase in phrases]
        if not spans_per_phrase:
            raise ValueError(f"phrases is empty; name phrases of {caption!r}, or leave it out")
    return {fields.CAPTION: caption, fields.PHRASES: spans_per_phrase}


def _phrase_spans(caption: str, phrase: Phrase) -> list[Span]:
    if not isinstance(phrase, str):
        try:
            return [(int(start), int(end)) for start, end in phrase]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the phrase {phrase!r} is neither words of the caption {caption!r} nor a list of "
                "its characters [start, end)"
            ) from error
    match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)
    if not phrase.strip() or match is None:
        raise ValueError(f"the phrase {phrase!r} is not in the caption {caption!r}; copy its words")
    return [match.span()]
