"""Noun phrases of class names, and questions with answers about a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from glipv2_d2.data.composed_dataset import NUMBERS
from glipv2_mini.text.articles import article_of

# Plural nouns, which take no article.
PLURAL_ONLY = {"binoculars", "grapes", "pants", "pliers", "scissors"}


def noun_phrase(name: str, count: int) -> str:
    """The noun phrase for ``count`` objects of a class.

    >>> noun_phrase("apple", 1), noun_phrase("goose", 2), noun_phrase("scissors", 1)
    ('an apple', 'two geese', 'scissors')
    """
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def make_questions(
    names: Sequence[str],
    centers: Sequence[float],
    all_names: Sequence[str],
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """Random questions about presence, number and location, with their answers.

    Args:
        names: class name of each object.
        centers: x of the centre of each object, in pixels.
        all_names: class names to draw an absent one from.
    """
    counts = Counter(names)
    absent = [name for name in all_names if name not in counts]
    questions = []
    if counts:
        present = sorted(counts)[rng.integers(len(counts))]
        questions.append((f"is there {with_article(present)} in the picture?", "yes"))
        questions.append((f"how many {plural(present)} are in the picture?", str(counts[present])))
    if absent:
        missing = absent[rng.integers(len(absent))]
        questions.append((f"is there {with_article(missing)} in the picture?", "no"))
    if len(names) == 2 and len(counts) == 2:
        left, right = (names[i] for i in np.argsort(centers))
        questions.append((f"what is left of the {right}?", left))
    return questions


def question_type(question: str) -> str:
    """The type of a question: its first words, as VQAv2 names its types.

    >>> question_type("is there a dog in the picture?"), question_type("what is left of the dog?")
    ('is there', 'what is left of')
    """
    beginnings = ("is there", "how many", "what is left of", "what is in")
    return next((words for words in beginnings if question.startswith(words)), "other")


def with_article(name: str) -> str:
    """The singular noun phrase of a class name.

    >>> with_article("apple"), with_article("dog"), with_article("scissors")
    ('an apple', 'a dog', 'scissors')
    """
    if name.split()[-1] in PLURAL_ONLY:
        return name
    return f"{article_of(name)} {name}"


def plural(name: str) -> str:
    """The plural of a class name.

    >>> [plural(name) for name in ("dog", "box", "cherry", "sheep", "goose", "scissors")]
    ['dogs', 'boxes', 'cherries', 'sheep', 'geese', 'scissors']
    """
    irregular = {
        "sheep": "sheep",
        "deer": "deer",
        "goose": "geese",
        "mouse": "mice",
        "fish": "fish",
    }
    if name in irregular:
        return irregular[name]
    if name.endswith(("s", "sh", "ch", "x")):
        return name if name.split()[-1] in PLURAL_ONLY else f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"
