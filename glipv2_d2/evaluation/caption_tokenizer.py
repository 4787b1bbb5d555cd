"""Tokenise captions for captioning metrics.

All captioning metrics are defined on the tokens of Stanford's PTB tokenizer, a Java program in the
package pycocoevalcap. Without Java, :func:`tokenize_caption` replaces it. Both agree on plain
sentences, but not on slang ("y'all") and unusual abbreviations.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

PTB = "PTB"
FALLBACK = "Python replacement of PTB"

# Tokens that PTBTokenizer of pycocoevalcap removes.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'}
_BRACKETS = dict(zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"), strict=True))
_TO_ASCII = str.maketrans(
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
_CONTRACTIONS = {
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
}
_CONTRACTIONS_RE = re.compile(rf"\b({'|'.join(_CONTRACTIONS)})\b")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_TOKEN = re.compile(
    r"""
    (?:mr|mrs|ms|dr|st|jr|sr|etc|vs)\.      # abbreviations keep their period
    | (?:[^\W\d_]\.){2,}                    # u.s., p.m.
    | n't(?!\w) | '(?:s|m|d|re|ve|ll)(?!\w) # clitics, split off before
    | '\d0s                                 # the '80s
    | \d+(?:[.,:/]\d+)+                     # 1,000, 5:30, 1/2
    | @?\w+(?:[-'/&.@]\w+)*                 # t-shirt, o'clock, and/or, at&t
    | \.{3,} | -{2,} | [!?]+                # runs of punctuation are one token
    | \S
    """,
    re.VERBOSE,
)


class TokenizedCaptions(NamedTuple):
    """Tokenised captions and the name of the tokenizer."""

    captions_per_image: list[list[str]]
    tokenizer: str


def tokenize(captions_per_image: Sequence[Sequence[str]]) -> TokenizedCaptions:
    """Tokenise captions: lower case, without punctuation, tokens separated by one blank."""
    lines = [[" ".join(text.split()) for text in captions] for captions in captions_per_image]
    reason = "Java is not installed"
    if shutil.which("java"):
        try:
            return TokenizedCaptions(_run_ptb(lines), PTB)
        # Java runs out of memory, or the package folder is read-only.
        except (OSError, RuntimeError) as error:
            reason = str(error)
    tokenized = [[tokenize_caption(text) for text in captions] for captions in lines]
    return TokenizedCaptions(tokenized, f"{FALLBACK}: {reason}")


def _run_ptb(captions_per_image: Sequence[Sequence[str]]) -> list[list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    entries = {
        i: [{"caption": text} for text in captions] for i, captions in enumerate(captions_per_image)
    }
    tokenized = PTBTokenizer().tokenize(entries)
    per_image = [tokenized.get(i, []) for i in entries]
    if list(map(len, per_image)) != list(map(len, captions_per_image)):
        raise RuntimeError("the Java program exited early")
    return per_image


def tokenize_caption(caption: str) -> str:
    """Tokenise one caption.

    >>> tokenize_caption("A man's T-shirt, 2.5 m away; don't they?")
    "a man 's t-shirt 2.5 m away do n't they"
    """
    text = caption.translate(_TO_ASCII).lower()
    text = _CONTRACTIONS_RE.sub(lambda match: _CONTRACTIONS[match[0]], text)
    tokens = _TOKEN.findall(_CLITIC.sub(r" \1", text))
    return " ".join(
        f"-{_BRACKETS[token]}-" if token in _BRACKETS else token
        for token in tokens
        if token not in _DROPPED and not token.startswith("..")
    )
