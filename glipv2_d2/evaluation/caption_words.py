"""Captions as the words that metrics count.

All metrics of captions are defined on the words of Stanford's PTB tokenizer, a Java program that
the package pycocoevalcap carries. Where there is no Java, :func:`split_words` stands in. On plain
sentences both give the same; on slang ("y'all") and unusual abbreviations they do not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

PTB = "PTB"
STAND_IN = "a stand-in for PTB"

# What PTBTokenizer of pycocoevalcap takes out.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'}
_BRACKETS = dict(zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"), strict=True))
_IN_ASCII = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2014": " -- ",
        "\u2013": " -- ",
        "\u2026": " ... ",
    }
)
_TWO_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
}
_TWO_WORDS_RE = re.compile(rf"\b({'|'.join(_TWO_WORDS)})\b")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_TOKEN = re.compile(
    r"""
    (?:mr|mrs|ms|dr|st|jr|sr|etc|vs)\.      # abbreviations keep their full stop
    | (?:[^\W\d_]\.){2,}                    # u.s., p.m.
    | n't(?!\w) | '(?:s|m|d|re|ve|ll)(?!\w) # split off before
    | '\d0s                                 # the '80s
    | \d+(?:[.,:/]\d+)+                     # 1,000, 5:30, 1/2
    | @?\w+(?:[-'/&.@]\w+)*                 # t-shirt, o'clock, and/or, at&t
    | \.{3,} | -{2,} | [!?]+                # runs of marks are one word
    | \S
    """,
    re.VERBOSE,
)


class TokenizedCaptions(NamedTuple):
    """Captions in words, with the name of what parted them."""

    captions_per_image: list[list[str]]
    tokenizer: str


def tokenize(captions_per_image: Sequence[Sequence[str]]) -> TokenizedCaptions:
    """Captions in small letters without punctuation, their words parted by one blank."""
    lines = [[" ".join(text.split()) for text in captions] for captions in captions_per_image]
    reason = "there is no Java"
    if shutil.which("java"):
        try:
            return TokenizedCaptions(_run_ptb(lines), PTB)
        # Java without memory, or a package folder that cannot be written to.
        except (OSError, RuntimeError) as error:
            reason = str(error)
    split = [[split_words(text) for text in captions] for captions in lines]
    return TokenizedCaptions(split, f"{STAND_IN}: {reason}")


def _run_ptb(captions_per_image: Sequence[Sequence[str]]) -> list[list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    entries = {
        i: [{"caption": text} for text in captions] for i, captions in enumerate(captions_per_image)
    }
    split = PTBTokenizer().tokenize(entries)
    found = [split.get(i, []) for i in entries]
    if list(map(len, found)) != list(map(len, captions_per_image)):
        raise RuntimeError("the Java program ended early")
    return found


def split_words(caption: str) -> str:
    """One caption in words.

    >>> split_words("A man's T-shirt, 2.5 m away; don't they?")
    "a man 's t-shirt 2.5 m away do n't they"
    """
    text = caption.translate(_IN_ASCII).lower()
    text = _TWO_WORDS_RE.sub(lambda match: _TWO_WORDS[match[0]], text)
    tokens = _TOKEN.findall(_CLITIC.sub(r" \1", text))
    return " ".join(
        f"-{_BRACKETS[token]}-" if token in _BRACKETS else token
        for token in tokens
        if token not in _DROPPED and not token.startswith("..")
    )
