from __future__ import annotations

import numpy as np

from glipv2_d2.data.scenes.language import ask, describe


def test_each_thing_has_the_span_that_names_it() -> None:
    caption, spans = describe(["dog", "cherry", "dog", "iris"])
    assert caption == "a picture of two dogs, a cherry and an iris"
    named = [caption[start:end] for start, end in spans]
    assert named == ["two dogs", "a cherry", "two dogs", "an iris"]


def test_answers_are_true() -> None:
    names, centers = ["dog", "cherry"], [200.0, 30.0]
    questions = dict(ask(names, centers, ["dog", "cherry", "bus"], np.random.default_rng(0)))
    assert questions["is there a bus in the picture?"] == "no"
    assert questions["what is left of the dog?"] == "cherry"
    assert {a for q, a in questions.items() if q.startswith("how many")} == {"1"}


def test_an_empty_scene_is_only_asked_about_what_is_not_there() -> None:
    assert ask([], [], ["bus"], np.random.default_rng(0)) == [
        ("is there a bus in the picture?", "no")
    ]
