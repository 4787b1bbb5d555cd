"""The table of few-shot ODinW: averages over the sets, with their spread over the seeds.

The average of a seed is that over the sets; mean and standard deviation (of a sample, n - 1) are
those of the averages of the seeds, as in the papers' table. An average needs the results of all its
jobs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from glipv2_d2.engine.odinw.job_run import JobResult, error_of, read_result
from glipv2_d2.engine.odinw.jobs import Job, write_shared
from glipv2_d2.file_writing import dump_json

TABLE_FILE = "table.md"
JSON_FILE = "table.json"

MAX_LISTED = 40
"""Jobs without a result that are listed in Markdown."""

NO_AP = "no AP: its test set has no boxes"


@dataclass(frozen=True)
class Spread:
    """A value per seed, and what they have in common.

    Attributes:
        per_seed: None for a seed whose results are not complete.
    """

    per_seed: Mapping[int, float | None]

    @property
    def mean(self) -> float | None:
        """Of all seeds; None if one is not complete."""
        values = self._values()
        return None if values is None else statistics.fmean(values)

    @property
    def std(self) -> float | None:
        """Of the sample of seeds; None for one seed."""
        values = self._values()
        return None if values is None or len(values) < 2 else statistics.stdev(values)

    def _values(self) -> list[float] | None:
        values = [value for value in self.per_seed.values() if value is not None]
        return values if values and len(values) == len(self.per_seed) else None

    def text(self) -> str:
        """
        >>> Spread({3: 51.0, 30: 52.0, 300: 53.0}).text(), Spread({3: 50.0, 30: None}).text()
        ('52.0 ± 1.0', '-')
        """
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")

    def to_json(self) -> dict[str, Any]:
        per_seed = {str(seed): value for seed, value in self.per_seed.items()}
        return {"mean": self.mean, "std": self.std, "per_seed": per_seed}


@dataclass(frozen=True)
class Row:
    """The results of one policy with one number of shots on the sets of a benchmark.

    Attributes:
        average: over the sets.
        per_set: of each set.
        num_jobs, num_results: of all sets and seeds.
    """

    benchmark: str
    policy: str
    shots: int
    average: Spread
    per_set: Mapping[str, Spread]
    num_jobs: int
    num_results: int

    @property
    def shots_text(self) -> str:
        return str(self.shots) if self.shots else "all"

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "policy": self.policy,
            "shots": self.shots,
            "num_jobs": self.num_jobs,
            "num_results": self.num_results,
            "average": self.average.to_json(),
            "per_set": {name: spread.to_json() for name, spread in self.per_set.items()},
        }


@dataclass(frozen=True)
class OdinwTable:
    """All rows, and the reason why a job has no result."""

    rows: Sequence[Row]
    missing: Mapping[Job, str]

    def text(self) -> str:
        """The tables in Markdown."""
        parts = ["# ODinW: box AP on the test sets", _overall(self.rows)]
        if self.missing:
            count = f"{len(self.missing)} of {sum(row.num_jobs for row in self.rows)}"
            lines = [f"- `{job.name}`: {reason}" for job, reason in self.missing.items()]
            if (more := len(lines) - MAX_LISTED) > 0:
                lines[MAX_LISTED:] = [f"- and {more} more, listed in {JSON_FILE}"]
            parts += [f"## Without a result: {count} jobs", "\n".join(lines)]
        for group in dict.fromkeys((row.benchmark, row.policy) for row in self.rows):
            rows = [row for row in self.rows if (row.benchmark, row.policy) == group]
            parts += [f"## {group[0]}, {group[1]}: per set and shots", _per_set(rows)]
        return "\n\n".join(parts) + "\n"

    def write(self, output: Path) -> list[Path]:
        """Write the table as Markdown and as JSON."""
        content = {
            "rows": [row.to_json() for row in self.rows],
            "missing": {job.name: reason for job, reason in self.missing.items()},
        }
        paths = [output / TABLE_FILE, output / JSON_FILE]
        write_shared(paths[0], self.text())
        write_shared(paths[1], dump_json(content, indent=1) + "\n")
        return paths


def read_table(
    output: Path, jobs: Sequence[Job], reasons: Mapping[Job, str] | None = None
) -> OdinwTable:
    """The table of the results in an output folder.

    Args:
        reasons: why jobs were not run, as far as known.

    Raises:
        ValueError: a result is damaged, or results were made with different settings.
    """
    results = {job: result for job in jobs if (result := read_result(output, job)) is not None}
    _check_settings(results.values())
    missing = {}
    for job in jobs:
        if job not in results:
            known = (reasons or {}).get(job)
            error = error_of(output, job)
            missing[job] = known or (f"failed: {error}" if error else "not run, or not complete")
        elif not math.isfinite(results[job].ap):
            missing[job] = NO_AP
    aps = {job: result.ap for job, result in results.items() if job not in missing}
    return OdinwTable(make_rows(jobs, aps), missing)


def _check_settings(results: Iterable[JobResult]) -> None:
    first_of = {result.settings: result.job for result in reversed(list(results))}
    if len(first_of) > 1:
        names = ", ".join(repr(job.name) for job in first_of.values())
        raise ValueError(
            f"results of {len(first_of)} different models or configs are mixed, such as those of "
            f"{names}: keep each in an output folder of its own"
        )


def make_rows(jobs: Sequence[Job], aps: Mapping[Job, float]) -> list[Row]:
    """The rows in the order of the jobs.

    Args:
        aps: box AP of the jobs that have one.
    """
    rows = []
    for benchmark, policy, shots in dict.fromkeys((x.benchmark, x.policy, x.shots) for x in jobs):
        own = [x for x in jobs if (x.benchmark, x.policy, x.shots) == (benchmark, policy, shots)]
        sets = dict.fromkeys(job.dataset for job in own)
        rows.append(
            Row(
                benchmark,
                policy,
                shots,
                average=_spread(own, aps),
                per_set={x: _spread([job for job in own if job.dataset == x], aps) for x in sets},
                num_jobs=len(own),
                num_results=sum(job in aps for job in own),
            )
        )
    return rows


def _spread(jobs: Sequence[Job], aps: Mapping[Job, float]) -> Spread:
    """The average of each seed over its jobs."""
    per_seed: dict[int, float | None] = {}
    for seed in dict.fromkeys(job.seed for job in jobs):
        values = [aps.get(job) for job in jobs if job.seed == seed]
        known = [value for value in values if value is not None]
        per_seed[seed] = statistics.fmean(known) if len(known) == len(values) else None
    return Spread(per_seed)


def _overall(rows: Sequence[Row]) -> str:
    headers = ("benchmark", "sets", "policy", "shots", "average AP", "seeds", "results")
    cells = [
        (
            row.benchmark,
            len(row.per_set),
            row.policy,
            row.shots_text,
            row.average.text(),
            ", ".join(_seed_text(*item) for item in row.average.per_seed.items()),
            f"{row.num_results} of {row.num_jobs}",
        )
        for row in rows
    ]
    return tabulate(cells, headers, "github", disable_numparse=True)


def _seed_text(seed: int, value: float | None) -> str:
    return f"{seed}: {'-' if value is None else f'{value:.1f}'}"


def _per_set(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(name for row in rows for name in row.per_set)
    cells = [
        (name, *(row.per_set[name].text() if name in row.per_set else "-" for row in rows))
        for name in names
    ]
    cells.append(("average", *(row.average.text() for row in rows)))
    headers = ("set", *(row.shots_text for row in rows))
    return tabulate(cells, headers, "github", disable_numparse=True)
