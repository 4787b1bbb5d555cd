"""The content of training prompts. GLIP's order of random draws is not reproduced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.prompt_sampling import sample_classes

TEXTS = [f"name {i}" for i in range(100)]


def sample(positives: list[int], **changes: Any) -> list[int]:
    arguments: dict[str, Any] = {
        "keys": TEXTS,
        "costs": [2] * len(TEXTS),
        "budget": 255,
        "max_negatives": 85,
        "full_negatives_prob": 0.5,
        "shuffle": True,
        "rng": np.random.default_rng(0),
    }
    return sample_classes(positives, **{**arguments, **changes})


@given(st.sets(st.integers(0, 99), max_size=30), st.integers(0, 2**16), st.integers(10, 255))
def test_prompt_is_within_budget_without_repeats(
    positives: set[int], seed: int, budget: int
) -> None:
    costs = np.random.default_rng(seed).integers(1, 9, 100).tolist()
    classes = sample(sorted(positives), costs=costs, budget=budget, rng=np.random.default_rng(seed))
    assert len(set(classes)) == len(classes) > 0
    assert sum(costs[c] for c in classes) <= budget


@given(st.sets(st.integers(0, 99), max_size=40), st.integers(0, 2**16))
def test_all_positives_that_fit_are_in_the_prompt(positives: set[int], seed: int) -> None:
    classes = sample(sorted(positives), rng=np.random.default_rng(seed))
    assert positives <= set(classes)


def test_positives_beyond_the_budget_are_dropped_at_random() -> None:
    kept = [frozenset(sample([1, 2, 3], budget=4, rng=np.random.default_rng(s))) for s in range(50)]
    assert set(kept) == {frozenset({1, 2}), frozenset({1, 3}), frozenset({2, 3})}


def test_full_draw_contains_all_names_that_fit() -> None:
    classes = sample([3], full_negatives_prob=1.0, keys=TEXTS[:80], costs=[2] * 80)
    assert sorted(classes) == list(range(80))


def test_half_of_the_draws_have_the_full_number_of_negatives() -> None:
    counts = [len(sample([0], rng=np.random.default_rng(s), max_negatives=10)) for s in range(600)]
    # 10 negatives beside the positive, unless the positive is among the 10 drawn of 100.
    full = np.mean([count >= 10 for count in counts])
    assert 0.48 < full < 0.70
    assert min(counts) <= 2


@given(st.sampled_from([[0], [1], [0, 1]]), st.integers(0, 2**16))
def test_classes_of_one_key_are_in_a_prompt_once(positives: list[int], seed: int) -> None:
    classes = sample(
        positives,
        keys=["bow", "bow", "cat"],
        costs=[2] * 3,
        full_negatives_prob=1.0,
        rng=np.random.default_rng(seed),
    )
    assert sorted(classes) in ([0, 2], [1, 2])


def test_of_one_key_a_class_that_fits_is_in_the_prompt() -> None:
    assert sample([0], keys=["bow", "bow"], costs=[999, 2], max_negatives=0) == [1]


def test_prompt_without_positives_and_negatives_has_one_name() -> None:
    assert len(sample([], max_negatives=0)) == 1


def test_without_shuffling_names_keep_the_order_of_the_dataset() -> None:
    classes = sample([50, 7], shuffle=False)
    assert classes == sorted(classes)


def test_shuffling_mixes_positives_and_negatives() -> None:
    places = {sample([0], rng=np.random.default_rng(s)).index(0) == 0 for s in range(30)}
    assert places == {True, False} or places == {False}


def test_names_beyond_the_budget_raise() -> None:
    with pytest.raises(ValueError, match="budget of 1 tokens.*max_tokens"):
        sample([0], budget=1)


@given(st.sets(st.integers(0, 99), max_size=20), st.integers(0, 2**16))
def test_negatives_are_drawn_from_the_classes_that_are_known_to_be_absent(
    absent: set[int], seed: int
) -> None:
    classes = sample([3, 5], candidates=sorted(absent), rng=np.random.default_rng(seed))
    assert {3, 5} <= set(classes) <= {3, 5} | absent


def test_all_classes_that_are_known_to_be_absent_may_be_drawn() -> None:
    assert sorted(sample([3], candidates=[7, 50], full_negatives_prob=1.0)) == [3, 7, 50]
