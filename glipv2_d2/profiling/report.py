"""Results of a benchmark: statistics, JSON file, and tables of one or two reports."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.profiling.stages import Amounts, floor_seconds

# A stage whose floor is a smaller share of its time has no meaningful ratio.
_MIN_FLOOR_SHARE = 0.01


@dataclass
class BenchmarkReport:
    """Measurements of a benchmark; also the layout of the JSON file.

    Attributes:
        settings: model, inputs, machine.
        stages: per stage the median and the spread (median absolute deviation) of the seconds of a
            run or training step, its FLOPs and bytes, its floor and the ratio to it.
        total: the same of the whole run.
        rates: of the machine, per second (on a CPU per second and thread): FLOPs of a large
            product, of a convolution, copied bytes.
        peak_bytes: peak memory of the process (CPU) or of the allocator (CUDA).
        operators: per operator of torch its seconds without those it calls, and its calls.
    """

    settings: dict[str, Any]
    stages: dict[str, Amounts] = field(default_factory=dict)
    total: Amounts = field(default_factory=dict)
    rates: Amounts = field(default_factory=dict)
    peak_bytes: int = 0
    operators: dict[str, Amounts] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> BenchmarkReport:
        """Read a file of :meth:`write`.

        Raises:
            FileNotFoundError, ValueError: the file is missing or is not a report.
        """
        try:
            return BenchmarkReport(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a result of --json: {error}") from error

    def write(self, path: Path) -> None:
        with atomic_open(path) as file:
            file.write(dump_json(asdict(self), indent=1).encode())


def busy_seconds(amounts: Amounts) -> float:
    """CPU seconds of all threads, or wall-clock seconds on other devices."""
    return amounts.get("cpu_s", amounts["wall_s"])


def sum_amounts(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def median_amounts(samples: Sequence[Amounts]) -> Amounts:
    return {name: statistics.median(x[name] for x in samples) for name in samples[0]}


def summarize(samples: Sequence[Amounts], products: Amounts | None, rates: Amounts) -> Amounts:
    """Median and spread of the seconds, with the amount of products and the floor they set.

    Args:
        samples: the measured seconds of each repeat.
        products: FLOPs and bytes of one run; None if unknown.
        rates: of the machine.
    """
    summary = median_amounts(samples)
    wall_s = summary["wall_s"]
    summary["spread_s"] = statistics.median(abs(x["wall_s"] - wall_s) for x in samples)
    if products is not None:
        floor_s = floor_seconds(products, rates)
        summary |= {**products, "floor_s": floor_s}
        if floor_s > _MIN_FLOOR_SHARE * busy_seconds(summary):
            summary["ratio"] = busy_seconds(summary) / floor_s
    return summary


def print_report(report: BenchmarkReport, console: Console) -> None:
    """Print a table with a row per stage, slowest first."""
    settings = report.settings
    height, width = settings["image_size"]
    console.print(
        f"{settings['config_file']}: {settings['mode']}, {settings['batch_size']} x {height} x "
        f"{width}, {settings['num_classes']} names, {settings['precision']}, "
        f"{settings['threads']} threads on {settings['device']}",
        soft_wrap=True,
    )
    columns = ("ms", "+-", "CPU ms", "GFLOP", "MB", "floor ms", "ratio")
    table = Table("stage", *(Column(name, justify="right") for name in columns))
    by_time = sorted(report.stages.items(), key=lambda item: -item[1]["wall_s"])
    for name, stage in [*by_time, ("total", report.total)]:
        flops = stage.get("product_flops", 0.0) + stage.get("convolution_flops", 0.0)
        table.add_row(
            name,
            f"{stage['wall_s'] * 1e3:.0f}",
            f"{stage['spread_s'] * 1e3:.0f}",
            f"{stage['cpu_s'] * 1e3:.0f}" if "cpu_s" in stage else "",
            f"{flops / 1e9:.1f}",
            f"{stage.get('bytes', 0.0) / 1e6:.0f}",
            f"{stage.get('floor_s', 0.0) * 1e3:.0f}",
            f"{stage['ratio']:.2f}" if "ratio" in stage else "",
        )
    console.print(table)
    rates, per = report.rates, "(s thread)" if "cpu_s" in report.total else "s"
    console.print(
        f"machine: product {rates['product'] / 1e9:.0f} GFLOP/{per}, convolution "
        f"{rates['convolution'] / 1e9:.0f} GFLOP/{per}, copy {rates['copy'] / 1e9:.1f} GB/{per}; "
        f"{settings['batch_size'] / report.total['wall_s']:.3g} images/s; peak memory "
        f"{report.peak_bytes / 1e9:.2f} GB",
        soft_wrap=True,
    )


def print_operators(report: BenchmarkReport, console: Console, count: int) -> None:
    """Print the operators with the most seconds of their own, and the rest as one row."""
    table = Table("operator", *(Column(name, justify="right") for name in ("ms", "%", "calls")))
    total = sum(x["self_s"] for x in report.operators.values())
    by_time = sorted(report.operators.items(), key=lambda item: -item[1]["self_s"])
    rows = by_time[:count]
    if others := [amounts for _, amounts in by_time[count:]]:
        rows.append((f"{len(others)} others", sum_amounts(others)))
    for name, x in rows:
        share = 100 * x["self_s"] / total
        table.add_row(name, f"{x['self_s'] * 1e3:.0f}", f"{share:.1f}", f"{x['calls']:.0f}")
    console.print(table)


def print_comparison(before: BenchmarkReport, after: BenchmarkReport, console: Console) -> None:
    """Print two reports side by side.

    Their seconds are comparable only if the rates of the machine are similar.
    """
    for name, old in before.settings.items():
        if old != after.settings.get(name):
            console.print(f"{name}: {old} -> {after.settings.get(name)}", soft_wrap=True)
    columns = ("ms before", "after", "after/before", "ratio before", "after")
    table = Table("stage", *(Column(name, justify="right") for name in columns))
    for name in [*dict.fromkeys([*before.stages, *after.stages]), "total"]:
        old, new = (
            report.total if name == "total" else report.stages.get(name, {})
            for report in (before, after)
        )
        cells = [f"{x['wall_s'] * 1e3:.0f}" if x else "" for x in (old, new)]
        cells.append(f"{new['wall_s'] / old['wall_s']:.2f}" if old.get("wall_s") and new else "")
        cells += [f"{x['ratio']:.2f}" if "ratio" in x else "" for x in (old, new)]
        table.add_row(name, *cells)
    console.print(table)
    for name, rate in before.rates.items():
        console.print(f"machine, {name}: after/before {after.rates[name] / rate:.2f}")
    console.print(
        f"peak memory: {before.peak_bytes / 1e9:.2f} -> {after.peak_bytes / 1e9:.2f} GB",
        soft_wrap=True,
    )
