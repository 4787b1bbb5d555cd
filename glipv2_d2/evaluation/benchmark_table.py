"""Results of benchmarks as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from glipv2_d2.evaluation.benchmarks import Benchmark
from glipv2_d2.evaluation.build import TTA_SUFFIX

Results = dict[str, dict[str, float | None]]
"""Task -> metric -> value; None in place of nan."""

HEADERS = ("benchmark", "dataset", "result")
# Datasets of one benchmark that are listed one by one although they were not evaluated.
MAX_NAMED = 3


@dataclass(frozen=True)
class Outcome:
    """The outcome of one dataset of a benchmark.

    Attributes:
        dataset: its registered name.
        results: of the evaluation; None if the dataset was not evaluated.
        reason: why it was not evaluated.
        failed: the evaluation started and raised an error.
    """

    dataset: str
    results: Results | None = None
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Report:
    """The outcomes of the datasets of one benchmark, in its order."""

    benchmark: Benchmark
    outcomes: tuple[Outcome, ...]

    @property
    def values(self) -> list[float]:
        """The first metric of every dataset that has it."""
        metric = self.benchmark.metrics[0]
        values = [_value(outcome, metric) for outcome in self.outcomes]
        return [value for value in values if value is not None]

    @property
    def summary(self) -> dict[str, float]:
        """Average and median of :attr:`values` of a benchmark that is averaged, else empty."""
        if not self.benchmark.is_averaged or not self.values:
            return {}
        return {"average": statistics.fmean(self.values), "median": statistics.median(self.values)}


def to_text(reports: Sequence[Report], tablefmt: str) -> str:
    """The table in one of tabulate's formats."""
    rows = [row for report in reports for row in _rows(report)]
    return tabulate(rows, HEADERS, tablefmt=tablefmt, disable_numparse=True)


def to_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Outcomes and summaries as JSON values, per benchmark and dataset."""
    return {
        report.benchmark.name: {
            "datasets": {
                outcome.dataset: {
                    "results": outcome.results,
                    "reason": outcome.reason,
                    "failed": outcome.failed,
                }
                for outcome in report.outcomes
            },
            "summary": report.summary,
        }
        for report in reports
    }


def _rows(report: Report) -> list[tuple[str, str, str]]:
    name, outcomes = report.benchmark.name, report.outcomes
    missing = [outcome for outcome in outcomes if outcome.results is None and not outcome.failed]
    named = outcomes
    if len(missing) > MAX_NAMED:
        named = tuple(outcome for outcome in outcomes if outcome not in missing)
    rows = [
        (name, outcome.dataset, _numbers(report.benchmark, outcome) or outcome.reason)
        for outcome in named
    ]
    if len(named) < len(outcomes):
        rows.append((name, f"{len(missing)} others", f"{missing[0].reason}, and so on"))
    if report.summary:
        metric = report.benchmark.metrics[0].replace("/", " ")
        count = len(report.values)
        of = f"{count} of {len(report.outcomes)}" if count < len(report.outcomes) else str(count)
        numbers = ", ".join(f"{key} {value:.2f}" for key, value in report.summary.items())
        rows.append((name, f"all ({of})", f"{metric}: {numbers}"))
    return rows


def _numbers(benchmark: Benchmark, outcome: Outcome) -> str:
    """
    >>> of = Benchmark("b", (), ("bbox/AP", "bbox/AP50", "segm/AP"))
    >>> _numbers(of, Outcome("set", {"bbox": {"AP": 12.345, "AP50": 30.0}}))
    'bbox: AP 12.35, AP50 30.00'

    Those with test-time augmentation come last:

    >>> _numbers(of, Outcome("set", {"bbox": {"AP": 12.345}, "bbox_TTA": {"AP": 13.0}}))
    'bbox: AP 12.35; bbox_TTA: AP 13.00'
    """
    by_task: dict[str, list[str]] = {}
    for suffix in ("", TTA_SUFFIX):
        for metric in benchmark.metrics:
            task, name = metric.split("/", 1)
            value = _value(outcome, f"{task}{suffix}/{name}")
            if value is not None:
                by_task.setdefault(f"{task}{suffix}", []).append(f"{name} {value:.2f}")
    return "; ".join(f"{task}: {', '.join(values)}" for task, values in by_task.items())


def _value(outcome: Outcome, metric: str) -> float | None:
    task, name = metric.split("/", 1)
    return (outcome.results or {}).get(task, {}).get(name)
