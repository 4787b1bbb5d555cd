"""Answers to questions: one spelling for each, and lists of them.

The spelling is that of the VQA challenge's evaluation script (GT-Vision-Lab/VQA at c4e6a0e,
vqaEval.py), its oddities included: what it does to a model's answer decides whether that counts.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

_PACKAGE_PREFIX = "package:"

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

# Apostrophes and colons stay.
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The script means to keep the points of decimals; by a slip it keeps every one before a digit.
_POINT = re.compile(r"\.(?!\d)")

_CONTRACTED = """
    ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at
    shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've weren't we've what'll what're what's what've when's where'd where's where've who'd
    who'd've who'll who's who've why'll why're why's won't wouldn't wouldn't've would've y'all
    y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# A contraction that lacks one of its apostrophes gets it back; one goes the other way.
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTED.split()
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}


def strip_punctuation(text: str) -> str:
    """A text without punctuation, as the script strips it.

    A mark becomes a blank; where it has a blank beside it somewhere in the text, or where a comma
    parts a number's digits, it and its like vanish.

    >>> [strip_punctuation(text) for text in ("t-shirt", "yes, it is", "1,000", "2.5", "a.m.")]
    ['t shirt', 'yes it is', '1000', '2.5', 'am']
    """
    stripped = text
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        vanishes = has_long_number or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if vanishes else " ")
    return _POINT.sub("", stripped)


def normalize_answer(text: str) -> str:
    """An answer as the script spells a model's: small letters, digits, no articles, apostrophes.

    >>> [normalize_answer(text) for text in ("The Two dogs!", "none", "dont know", "It's 5:30.")]
    ['2 dogs', '0', "don't know", "it's 5:30"]
    """
    words = strip_punctuation(" ".join(text.split())).lower().split()
    numbered = (_DIGITS.get(word, word) for word in words)
    kept = (word for word in numbered if word not in _ARTICLES)
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def canonical_answer(text: str) -> str:
    """The spelling by which an answer is learned: normalized, unless that leaves nothing of it.

    >>> [canonical_answer(text) for text in ("The dog.", "A", "  ")]
    ['dog', 'a', '']
    """
    return normalize_answer(text) or " ".join(text.lower().split())


def check_answers(answers: Sequence[str], source: str) -> list[str]:
    """The answers that a model chooses from, if each is one of its own.

    Args:
        source: where they are from, for messages.

    Raises:
        ValueError: there are none; one is no text, is empty, or is there twice, be it in another
            spelling.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{source}: {answers!r} is no list of answers; give at least one")
    place_of: dict[str, int] = {}
    for i, answer in enumerate(answers):
        key = isinstance(answer, str) and canonical_answer(answer)
        if not key:
            raise ValueError(f"{source}: answer {answer!r} (number {i}) has no words: take it out")
        first = place_of.setdefault(key, i)
        if first != i:
            raise ValueError(
                f"{source}: answers {answers[first]!r} (number {first}) and {answer!r} (number "
                f"{i}) are one and the same, as the evaluation spells them: take one out"
            )
    return list(answers)


def read_answers(path: str) -> list[str]:
    """The answers of a file that has one per line, as ``tools/answer_vocabulary.py`` writes it.

    Args:
        path: a file; or "package:NAME/PATH", one that an installed package carries.

    Raises:
        FileNotFoundError, ModuleNotFoundError: there is no such file or package.
        ValueError: an answer is empty or there twice.
    """
    file: Traversable = Path(path)
    if path.startswith(_PACKAGE_PREFIX):
        package, _, inside = path.removeprefix(_PACKAGE_PREFIX).partition("/")
        file = importlib.resources.files(package) / inside
    try:
        # Editors may begin a file with a mark of its encoding.
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no list {path!r} (MODEL.ANSWER.FILE, MODEL.REGION_READER.NAMES_FILE): it "
            "has one answer or name per line; tools/answer_vocabulary.py writes one from data sets"
        ) from error
    return check_answers(lines, repr(path))
