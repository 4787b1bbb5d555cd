"""What a fine-tuning has gained on its data and lost elsewhere, as a table, JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from glipv2_d2.checkpoint import atomic_open

OVERALL = ("AP", "AP50", "AP75")
CLASS_PREFIX = "AP-"


@dataclass(frozen=True)
class Comparison:
    """Box APs (0..100) of one data set, by the base and by the fine-tuned model.

    Attributes:
        before, after: metric -> value, as Detectron2's evaluators name them; nan where a class has
            no box, or nothing was found.
    """

    dataset: str
    before: Mapping[str, float]
    after: Mapping[str, float]

    def rows(self, metrics: Iterable[str]) -> list[list[str]]:
        """(metric, before, after, change) of some metrics, as texts."""
        return [
            [
                metric.removeprefix(CLASS_PREFIX),
                _text(self.before.get(metric)),
                _text(self.after.get(metric)),
                _change(self.before.get(metric), self.after.get(metric)),
            ]
            for metric in metrics
        ]

    @property
    def class_metrics(self) -> list[str]:
        """The metrics of single classes; of one class alone there are none."""
        return [metric for metric in self.after if metric.startswith(CLASS_PREFIX)]


@dataclass(frozen=True)
class FinetuneReport:
    """The outcome of one fine-tuning.

    Attributes:
        about: what was done: policy, data, sizes, files.
        target: on the data that was learned.
        base_sets: on the data sets of the base, where forgetting shows.
        absent_base_sets: those of them that are not on this machine.
    """

    about: Mapping[str, Any]
    target: Comparison
    base_sets: Sequence[Comparison]
    absent_base_sets: Sequence[str]

    def text(self, table_format: str = "github") -> str:
        """Tables with their headings, in Markdown.

        Args:
            table_format: one of tabulate's.
        """
        parts = [
            "# Fine-tuning",
            tabulate(list(self.about.items()), ("what", "value"), table_format, disable_numparse=1),
            f"## {self.target.dataset}: box AP",
            _table(self.target.rows(OVERALL), "metric", table_format),
        ]
        if self.target.class_metrics:
            parts += [
                f"## {self.target.dataset}: box AP per class",
                _table(self.target.rows(self.target.class_metrics), "class", table_format),
            ]
        parts.append("## The base's vocabulary: box AP")
        if self.base_sets:
            rows = [[c.dataset, *c.rows(["AP"])[0][1:]] for c in self.base_sets]
            parts.append(_table(rows, "data set", table_format))
        if self.absent_base_sets:
            parts.append(f"Not measured, not on this machine: {', '.join(self.absent_base_sets)}.")
        elif not self.base_sets:
            parts.append("Not measured: no data set was asked for.")
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write report.json and report.md, each whole or not at all. A nan is null in JSON."""
        content = json.dumps(_without_nan(asdict(self)), indent=1, default=str)
        for name, text in (("report.json", content), ("report.md", self.text())):
            with atomic_open(folder / name) as file:
                file.write(text.encode())


def _table(rows: list[list[str]], first_column: str, table_format: str) -> str:
    columns = (first_column, "before", "after", "change")
    align = ("left", "right", "right", "right")
    return tabulate(rows, columns, table_format, colalign=align, disable_numparse=True)


def _text(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or math.isnan(before) or math.isnan(after):
        return "-"
    return f"{after - before:+.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
