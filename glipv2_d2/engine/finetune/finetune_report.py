"""Report of a fine-tuning: AP on its dataset and on the base's, as Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from glipv2_d2.file_writing import atomic_write, dump_json

OVERALL = ("AP", "AP50", "AP75")
CLASS_PREFIX = "AP-"


@dataclass(frozen=True)
class Comparison:
    """Box APs (0..100) of the base and of the fine-tuned model on one dataset.

    Attributes:
        before, after: metric -> value, with the names of Detectron2's evaluators; nan for a class
            without boxes, or without detections at all.
    """

    dataset: str
    before: Mapping[str, float]
    after: Mapping[str, float]

    def rows(self, metrics: Iterable[str]) -> list[list[str]]:
        """Rows of strings: metric, before, after, change."""
        return [
            [
                metric.removeprefix(CLASS_PREFIX),
                _format(self.before.get(metric)),
                _format(self.after.get(metric)),
                _change(self.before.get(metric), self.after.get(metric)),
            ]
            for metric in metrics
        ]

    @property
    def class_metrics(self) -> list[str]:
        """The metrics of single classes; empty for a dataset with one class."""
        return [metric for metric in self.after if metric.startswith(CLASS_PREFIX)]


@dataclass(frozen=True)
class FinetuneReport:
    """The results of one fine-tuning.

    Attributes:
        about: description -> value: policy, data, sizes, files.
        target: results on the fine-tuning dataset.
        base_sets: results on the base's datasets, to measure forgetting.
        absent_base_sets: names of those that are not on this machine.
        notes: what the user should know about the data.
    """

    about: Mapping[str, Any]
    target: Comparison
    base_sets: Sequence[Comparison]
    absent_base_sets: Sequence[str]
    notes: Sequence[str] = ()

    def text(self, table_format: str = "github") -> str:
        """The tables with headings, in Markdown.

        Args:
            table_format: a table format of tabulate.
        """
        parts = [
            "# Fine-tuning",
            tabulate(list(self.about.items()), ("what", "value"), table_format, disable_numparse=1),
            *self.notes,
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
            parts.append(_table(rows, "dataset", table_format))
        if self.absent_base_sets:
            parts.append(f"Not measured, not on this machine: {', '.join(self.absent_base_sets)}.")
        elif not self.base_sets:
            parts.append("Not measured: no dataset was selected.")
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Atomically write report.json and report.md. A nan becomes null in JSON."""
        paths = [folder / "report.json", folder / "report.md"]
        atomic_write(paths[0], dump_json(asdict(self), indent=1, default=str))
        atomic_write(paths[1], self.text())
        return paths


def _table(rows: list[list[str]], first_column: str, table_format: str) -> str:
    columns = (first_column, "before", "after", "change")
    align = ("left", "right", "right", "right")
    return tabulate(rows, columns, table_format, colalign=align, disable_numparse=True)


def _format(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or math.isnan(before) or math.isnan(after):
        return "-"
    return f"{after - before:+.1f}"
