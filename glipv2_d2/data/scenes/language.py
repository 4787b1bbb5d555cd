"""What can be said and asked about a scene: captions with spans, questions with answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from glipv2_d2.structures.text import Span
from glipv2_d2.text.articles import article_of

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# Names that look like plurals and take no article.
PLURAL_ONLY = {"binoculars", "grapes", "pants", "pliers", "scissors"}


def describe(names: Sequence[str]) -> tuple[str, list[Span]]:
    """A caption that names everything, and for each thing the span that means it.

    >>> describe(["cat", "apple", "cat"])
    ('a picture of two cats and an apple', [(13, 21), (26, 34), (13, 21)])
    >>> describe([])
    ('an empty picture', [])
    """
    if not names:
        return "an empty picture", []
    caption = "a picture of "
    spans: dict[str, Span] = {}
    counts = Counter(names)
    for i, (name, count) in enumerate(counts.items()):
        if i > 0:
            caption += " and " if i == len(counts) - 1 else ", "
        phrase = with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"
        spans[name] = (len(caption), len(caption) + len(phrase))
        caption += phrase
    return caption, [spans[name] for name in names]


def ask(
    names: Sequence[str],
    centers: Sequence[float],
    all_names: Sequence[str],
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """Questions and answers about presence, number and place.

    Args:
        names: of the things in the scene.
        centers: x of each thing's centre, in pixels.
        all_names: to ask about what is not there.
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
    """The kind of one of these questions: its first words, as VQAv2 names its types.

    >>> question_type("is there a dog in the picture?"), question_type("what is left of the dog?")
    ('is there', 'what is left of')
    """
    beginnings = ("is there", "how many", "what is left of", "what is in")
    return next((words for words in beginnings if question.startswith(words)), "other")


def with_article(name: str) -> str:
    """One of it.

    >>> with_article("apple"), with_article("dog"), with_article("scissors")
    ('an apple', 'a dog', 'scissors')
    """
    if name.split()[-1] in PLURAL_ONLY:
        return name
    return f"{article_of(name)} {name}"


def plural(name: str) -> str:
    """More than one of it.

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
