"""How long a training takes, and how many iterations fit into a time.

Times are in seconds. Everything that will run is counted: iterations, evaluations, and what follows
the training.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

MEASURED_FROM = 2
"""Iterations that are not measured: caches and loader processes start."""

EVALUATION_SHARE = 0.15
"""Of the time of a training with a limit, the most that evaluations take, if one fits (our
choice)."""

MAX_EVALUATIONS = 20
_SAFETY = 1.05
_WINDOW = 50


@dataclass(frozen=True)
class TimeLimit:
    """When a training must end.

    Attributes:
        deadline: on the clock of ``time.monotonic``.
        after_training: of the evaluations and the report that follow.
    """

    deadline: float
    after_training: float

    def left(self, now: float) -> float:
        """For iterations and evaluations of the training."""
        return self.deadline - now - self.after_training


@dataclass
class MeasuredTimes:
    """What was measured so far.

    Attributes:
        evaluation: seconds of the last evaluation; None: not yet measured.
    """

    evaluation: float | None = None
    _iterations: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _num_seen: int = 0

    def add_iteration(self, seconds: float) -> None:
        self._num_seen += 1
        if self._num_seen > MEASURED_FROM:
            self._iterations.append(seconds)

    @property
    def num_measured(self) -> int:
        return len(self._iterations)

    @property
    def iteration(self) -> float | None:
        """The mean of the last iterations; None before the first was measured."""
        return statistics.fmean(self._iterations) if self._iterations else None


@dataclass(frozen=True)
class Plan:
    """The length of a training.

    Attributes:
        num_iterations: in total.
        evaluation_period: iterations between evaluations; the last one ends the training.
    """

    num_iterations: int
    evaluation_period: int


def fit(done: int, left: float, iteration: float, evaluation: float) -> Plan:
    """The longest training that fits into a time, evaluated as often as its share allows.

    Args:
        done: iterations so far.
        left: seconds for further iterations and evaluations.
        iteration, evaluation: seconds of one.
    """
    affordable = int(EVALUATION_SHARE * left / evaluation) if evaluation > 0 else MAX_EVALUATIONS
    count = min(max(affordable, 1), MAX_EVALUATIONS)
    further = max(0, int((left - count * evaluation) / (_SAFETY * iteration)))
    total = max(done + further, 1)
    return Plan(total, math.ceil(total / count))


def remaining(
    *,
    iterations_left: int,
    evaluations_left: int,
    iteration: float | None,
    evaluation: float | None,
    after_training: float,
) -> float | None:
    """Seconds until the end; None before an iteration was measured."""
    if iteration is None:
        return None
    evaluations = evaluations_left * (evaluation or 0.0)
    return iterations_left * iteration + evaluations + after_training


def format_seconds(seconds: float | None) -> str:
    """A time for people.

    >>> format_seconds(None), format_seconds(7), format_seconds(150), format_seconds(7300)
    ('?', '7 s', '2 min 30 s', '2 h 1 min')
    """
    if seconds is None:
        return "?"
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
