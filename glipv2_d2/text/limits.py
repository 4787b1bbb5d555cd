"""Checks of a string before anything parses or tokenizes it."""

from __future__ import annotations

from glipv2_d2.messages import quote

MAX_CHARACTERS = 10_000
"""No language model here encodes more: BERT's 512 tokens are about 2,500 characters of English."""


def check_text(text: str, kind: str) -> None:
    """Check that a string can be encoded and is not far beyond any limit of tokens.

    Args:
        kind: what the string is, for messages: "caption".

    Raises:
        ValueError: it has more than :data:`MAX_CHARACTERS` characters, or is not valid Unicode.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{kind} {quote(text)} has {len(text)} characters, the limit is {MAX_CHARACTERS}: "
            "shorten it"
        )
    check_unicode(text)


def check_unicode(text: str) -> None:
    """Raise a ValueError if a string has lone surrogates, which no encoding has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {quote(text)} is not valid unicode ({error.reason}): load it with the right "
            "encoding"
        ) from error
