"""Normalization and lists of answers to questions.

Answers are normalized as the VQA challenge's evaluation script does (GT-Vision-Lab/VQA at a013f00,
vqaEval.py), including its oddities, because the script decides which answers are correct.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from glipv2_d2.messages import quote
from glipv2_d2.text_files import read_lines

_PACKAGE_PREFIX = "package:"

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

# Apostrophes and colons are kept.
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Meant to keep decimal points; the script keeps every point before a digit.
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
# Restores a missing apostrophe; of one contraction the script removes it instead.
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTED.split()
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}


def strip_punctuation(text: str) -> str:
    """Strip punctuation as the script does.

    A mark is replaced by a blank. It is removed if a blank precedes or follows the same mark
    anywhere in the text, or if the text has a comma between digits.

    >>> [strip_punctuation(text) for text in ("t-shirt", "yes, it is", "1,000", "2.5", "a.m.")]
    ['t shirt', 'yes it is', '1000', '2.5', 'am']
    """
    stripped = text
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        is_removed = has_long_number or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if is_removed else " ")
    return _POINT.sub("", stripped)


def normalize_answer(text: str) -> str:
    """Normalize an answer as the script does: lower case, digits, no articles, apostrophes.

    >>> [normalize_answer(text) for text in ("The Two dogs!", "none", "dont know", "It's 5:30.")]
    ['2 dogs', '0', "don't know", "it's 5:30"]
    """
    words = strip_punctuation(" ".join(text.split())).lower().split()
    numbered = (_DIGITS.get(word, word) for word in words)
    kept = (word for word in numbered if word not in _ARTICLES)
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def canonical_answer(text: str) -> str:
    """The key of an answer in training: normalized, or in lower case if that leaves nothing.

    >>> [canonical_answer(text) for text in ("The dog.", "A", "  ")]
    ['dog', 'a', '']
    """
    return normalize_answer(text) or " ".join(text.lower().split())


def check_answers(answers: Sequence[str], source: str) -> list[str]:
    """Check a list of answers to choose from, and return it.

    Args:
        source: origin of the list, for error messages.

    Raises:
        ValueError: the list is empty; an answer is not a string or has no words, or two are equal
            after normalization.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{source}: {quote(answers)} is not a list of answers; pass at least one")
    index_of: dict[str, int] = {}
    for i, answer in enumerate(answers):
        key = isinstance(answer, str) and canonical_answer(answer)
        if not key:
            raise ValueError(
                f"{source}: answer {quote(answer)} (index {i}) has no words: remove it"
            )
        first = index_of.setdefault(key, i)
        if first != i:
            raise ValueError(
                f"{source}: answers {quote(answers[first])} (index {first}) and {quote(answer)} "
                f"(index {i}) are equal after normalization: remove one"
            )
    return list(answers)


def load_answers(path: str) -> list[str]:
    """Load the answers of a file with one per line, as ``tools/answer_vocabulary.py`` writes it.

    Args:
        path: a file, or "package:NAME/PATH" for a file of an installed package.

    Raises:
        FileNotFoundError, ModuleNotFoundError: the file or package does not exist.
        ValueError: an answer is empty or duplicate.
    """
    file = Path(path)
    if path.startswith(_PACKAGE_PREFIX):
        package, _, inside = path.removeprefix(_PACKAGE_PREFIX).partition("/")
        # Found, not imported: no code of it is needed.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{path!r}: the package {package!r} is not installed")
        file = Path(next(iter(spec.submodule_search_locations))) / inside
    try:
        lines = read_lines(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no such file: {path!r}. It must have one answer or name per line; "
            "tools/answer_vocabulary.py writes one from datasets"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    return check_answers(lines, repr(path))
