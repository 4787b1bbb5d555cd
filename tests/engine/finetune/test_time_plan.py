"""How many iterations fit into a time, and how long the rest takes."""

from __future__ import annotations

import pytest

from glipv2_d2.engine.finetune.time_plan import MAX_EVALUATIONS, MeasuredTimes, fit, remaining


@pytest.mark.parametrize("left", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("evaluation", [0.0, 1.0, 20.0])
def test_a_plan_fits_into_the_time_and_uses_it(left: float, evaluation: float) -> None:
    plan = fit(10, left, 2.0, evaluation)
    evaluations = -(-plan.num_iterations // plan.evaluation_period)
    seconds = (plan.num_iterations - 10) * 2.0 + evaluations * evaluation
    assert seconds <= left
    # One evaluation may be dropped for a period of whole iterations.
    assert seconds >= 0.85 * left - evaluation - 4
    assert 1 <= evaluations <= MAX_EVALUATIONS


def test_without_time_the_training_ends_where_it_is() -> None:
    assert fit(10, -5.0, 2.0, 1.0).num_iterations == 10


def test_the_remaining_time_counts_iterations_evaluations_and_what_follows() -> None:
    times = {"iteration": 2.0, "evaluation": 10.0, "after_training": 7.0}
    assert remaining(iterations_left=5, evaluations_left=3, **times) == 10 + 30 + 7
    times["iteration"] = None  # type: ignore[assignment]
    assert remaining(iterations_left=5, evaluations_left=3, **times) is None


def test_the_first_iterations_are_not_measured() -> None:
    times = MeasuredTimes()
    for seconds in (100.0, 50.0):
        times.add_iteration(seconds)
    assert times.iteration is None
    for seconds in (1.0, 3.0):
        times.add_iteration(seconds)
    assert times.iteration == 2.0
