"""Questions about a scene with their answers, balanced so that guesses are rarely right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from glipv2_d2.data.composed_dataset import Question
from glipv2_mini.data.relations import order_along
from glipv2_mini.data.scene_text import Thing, kinds_of_names, plural, verb_for, with_article

# Wordings for one object, {one}, and for several, {several}.
PRESENCE = ("{is_there} {one}?", "{is_there} {one} in the picture?")
PLURAL_PRESENCE = ("are there {several}?", "are there any {several} in the picture?")
COUNTS = (
    "how many {several} are there?",
    "how many {several} are in the picture?",
    "how many {several} can you see?",
)
PLURAL_PROBABILITY = 0.5
"""Of a question for several objects about a class that has several."""
SINGLE_PROBABILITY = 0.1
"""Of a question for the number of one object: most classes of a scene have one."""
MIN_NAMED_SHARE = 0.02
"""Least share of the picture that an object covers if a question is for its name."""
MIN_MAIN_SHARE = 0.15
"""Least share of the picture that a main object covers, beside objects of other classes."""
MIN_MAIN_RATIO = 3.0
"""Least ratio of the area of a main object and of any object of another class."""


def make_questions(
    things: Sequence[Thing],
    size: tuple[int, int],
    all_names: Sequence[str],
    rng: np.random.Generator,
    *,
    num_presence: int = 1,
) -> list[Question]:
    """Random questions about presence, number, names, colours and location, with their answers.

    Args:
        things: the objects of the scene.
        size: (w, h) of the image.
        all_names: class names to draw absent ones from.
        num_presence: at most so many presence questions with the answer "yes", and with "no".
    """
    return [
        *presence_questions(Counter(item.name for item in things), all_names, rng, num_presence),
        *count_questions(Counter(item.name for item in things), rng),
        *naming_questions(things, size, rng),
        *color_questions(things, size),
        *location_questions(things, size),
    ]


def presence_questions(
    counts: Counter[str], all_names: Sequence[str], rng: np.random.Generator, num_pairs: int
) -> list[Question]:
    """Pairs of questions in one wording about a class that is there, and about one that is not."""
    present = _shuffled(sorted(counts), rng)
    absent = _shuffled([name for name in all_names if name not in counts], rng)
    questions: list[Question] = []
    for there, missing in list(zip(present, absent, strict=False))[:num_pairs]:
        several = counts[there] > 1 and rng.random() < PLURAL_PROBABILITY
        wordings = PLURAL_PRESENCE if several else PRESENCE
        wording = wordings[rng.integers(len(wordings))]
        questions += [(_fill(wording, there), "yes"), (_fill(wording, missing), "no")]
    return questions


def count_questions(counts: Counter[str], rng: np.random.Generator) -> list[Question]:
    """Questions for the number of objects; rare, large numbers have more wordings."""
    questions: list[Question] = []
    for name in sorted(counts):
        if counts[name] == 1 and rng.random() >= SINGLE_PROBABILITY:
            continue
        wordings = _shuffled(COUNTS, rng)[: max(1, counts[name] - 1)]
        questions += [(_fill(wording, name), str(counts[name])) for wording in wordings]
    return questions


def naming_questions(
    things: Sequence[Thing], size: tuple[int, int], rng: np.random.Generator
) -> list[Question]:
    """Questions for the name of the main object, or of several objects of one class.

    The answer is the class name, in the singular.
    """
    name = main_name(things, size)
    if name is None:
        return []
    several = sum(item.name == name for item in things) > 1
    this_is = "are these" if several else "is this"
    questions = [f"what {this_is}?", "what is in the picture?"]
    kinds = kinds_of_names().get(name, ())
    questions += [f"what {plural(kind) if several else kind} {this_is}?" for kind in kinds]
    return [(question, name) for question in _shuffled(questions, rng)[:2]]


def main_name(things: Sequence[Thing], size: tuple[int, int]) -> str | None:
    """The only class of a scene, or else the class of its large main object."""
    if not things:
        return None
    main = max(things, key=lambda item: item.area)
    others = [item for item in things if item is not main]
    if main.area < MIN_NAMED_SHARE * size[0] * size[1]:
        return None
    if all(item.name == main.name for item in others):
        return main.name
    is_large = main.area >= MIN_MAIN_SHARE * size[0] * size[1]
    if is_large and all(
        item.name != main.name and main.area >= MIN_MAIN_RATIO * item.area for item in others
    ):
        return main.name
    return None


def color_questions(things: Sequence[Thing], size: tuple[int, int]) -> list[Question]:
    """Questions for the colours of tinted objects: of one, or of the left and right of two."""
    by_name: dict[str, list[Thing]] = {}
    for item in things:
        by_name.setdefault(item.name, []).append(item)
    questions: list[Question] = []
    for name, group in by_name.items():
        what = f"what color {verb_for(name)} the {name}"
        if len(group) == 1 and group[0].color is not None:
            questions.append((f"{what}?", group[0].color))
        order = order_along(0, group, size) if len(group) == 2 else None
        if order is None or group[0].color == group[1].color:
            continue
        for side, index in zip(("left", "right"), order, strict=True):
            color = group[index].color
            if color is not None:
                questions.append((f"{what} on the {side}?", color))
    return questions


def location_questions(things: Sequence[Thing], size: tuple[int, int]) -> list[Question]:
    """What is left of the second object from the left, if that is clear."""
    in_order = sorted(things, key=lambda item: item.center_x)[:2]
    if len(in_order) < 2 or order_along(0, in_order, size) != [0, 1]:
        return []
    left, right = (item.name for item in in_order)
    names = [item.name for item in things]
    return [(f"what is left of the {right}?", left)] if names.count(right) == 1 else []


def question_type(question: str) -> str:
    """The type of a question: its first words, as VQAv2 names its types.

    >>> question_type("is there a dog in the picture?"), question_type("what animal is this?")
    ('is there', 'what')
    """
    beginnings = (
        *("is there", "are there", "how many", "what is left of", "what is in", "what is this"),
        *("what color", "what"),
    )
    return next((words for words in beginnings if question.startswith(words)), "other")


def _fill(wording: str, name: str) -> str:
    return wording.format(
        is_there=f"{verb_for(name)} there", one=with_article(name), several=plural(name)
    )


def _shuffled(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))]
