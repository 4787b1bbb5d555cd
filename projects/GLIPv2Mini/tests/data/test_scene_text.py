from __future__ import annotations

import numpy as np

from glipv2_d2.data.composed_dataset import scene_caption
from glipv2_mini.data.scene_text import make_questions, noun_phrase


def test_each_object_has_the_span_of_its_noun_phrase() -> None:
    caption, spans = scene_caption(["dog", "cherry", "dog", "iris"], noun_phrase)
    assert caption == "a picture of two dogs, a cherry and an iris"
    phrases = [caption[start:end] for start, end in spans]
    assert phrases == ["two dogs", "a cherry", "two dogs", "an iris"]


def test_answers_are_true() -> None:
    names, centers = ["dog", "cherry"], [200.0, 30.0]
    questions = dict(
        make_questions(names, centers, ["dog", "cherry", "bus"], np.random.default_rng(0))
    )
    assert questions["is there a bus in the picture?"] == "no"
    assert questions["what is left of the dog?"] == "cherry"
    assert {a for q, a in questions.items() if q.startswith("how many")} == {"1"}


def test_an_empty_scene_has_only_a_question_about_an_absent_class() -> None:
    assert make_questions([], [], ["bus"], np.random.default_rng(0)) == [
        ("is there a bus in the picture?", "no")
    ]
