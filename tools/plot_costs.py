#!/usr/bin/env python
r"""Time and memory of an image by number of class names and image size, beside Grounding DINO tiny.

    tools/plot_costs.py --output output/costs --threads 2

writes costs.png and costs.json. Both models have random weights and see noise; each setting has a
process of its own, in which a small image warms up and the first image of the setting is measured.
Memory is the peak of the process, libraries and weights included. Our text features are computed
within the time, as those of Grounding DINO are. It runs once per prompt of 256 tokens, as its
interface requires; of more than --max-prompts, that many are run and their time is multiplied.

The command continues costs.json of an earlier run with the same settings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from glipv2_d2.command_line import check_minimums
from glipv2_d2.config import named_config_file
from glipv2_d2.engine.host_memory import keep_freed_memory, peak_resident_bytes
from glipv2_d2.engine.setup import load_config
from glipv2_d2.file_writing import atomic_open, atomic_write, dump_json
from glipv2_d2.profiling.grounding_dino import GroundingDino
from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs

OURS, THEIRS = "this project", "Grounding DINO tiny"
STYLES = {OURS: ("#2563eb", "o"), THEIRS: ("#ea580c", "s")}
# Width / height, as COCO's 800 x 1333.
ASPECT_RATIO = 5 / 3
# Smaller maps have fewer positions than Grounding DINO has queries.
WARMUP_SIZE = (256, 384)


def image_size(side: int) -> tuple[int, int]:
    """(height, width) of an image with this shorter side.

    >>> image_size(800)
    (800, 1333)
    """
    return side, round(side * ASPECT_RATIO)


def settings_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement: both models over the names, and over the sizes."""
    pairs = [(num, args.side_of_names) for num in args.num_classes]
    pairs += [(args.classes_of_sizes, side) for side in args.sides]
    return [
        {"model": model, "num_classes": num, "side": side}
        for num, side in dict.fromkeys(pairs)
        for model in (OURS, THEIRS)
    ]


def measure_here(args: argparse.Namespace, setting: dict[str, Any]) -> dict[str, float]:
    """Seconds and bytes of one setting, in this process."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    names = benchmark_class_names(setting["num_classes"])
    factor = 1.0
    if setting["model"] == OURS:
        cfg = load_config(args.config or str(named_config_file("glip-t")), ["MODEL.DEVICE", "cpu"])
        model = build_model(cfg).eval()
    else:
        model = GroundingDino(names, torch.device("cpu"))
        num_prompts = len(model.prompts)
        model.prompts = model.prompts[: args.max_prompts]
        factor = num_prompts / len(model.prompts)
    with torch.no_grad():
        model(random_inputs(1, WARMUP_SIZE, names[:1], with_masks=False))
        inputs = random_inputs(1, image_size(setting["side"]), names, with_masks=False)
        start = time.perf_counter()
        model(inputs)
        seconds = time.perf_counter() - start
    return {"seconds": factor * seconds, "bytes": peak_resident_bytes()}


def measure(argv: Sequence[str], setting: dict[str, Any]) -> Any:
    """The same in a process of its own, whose peak of memory is the setting's.

    Raises:
        ChildProcessError: it failed.
    """
    command = [sys.executable, __file__, *argv, "--one", json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ChildProcessError(f"{setting} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[dict[str, Any]]:
    """Measure what costs.json does not have yet, and store each result at once."""
    path = args.output / "costs.json"
    shared = {"threads": args.threads, "config": args.config, "max_prompts": args.max_prompts}
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {row["key"] for row in rows}
    for setting in tqdm(settings_of(args), unit="setting"):
        key = json.dumps({**setting, **shared}, sort_keys=True)
        if key not in done:
            rows.append({"key": key, **setting, **measure(argv, setting)})
            atomic_write(path, dump_json(rows, indent=1))
    keys = {json.dumps({**setting, **shared}, sort_keys=True) for setting in settings_of(args)}
    return [row for row in rows if row["key"] in keys]


def plot(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> Figure:
    """Seconds and gigabytes over class names (left) and over the image's shorter side (right)."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    columns = (
        ("num_classes", "side", args.side_of_names, "class names, {} x {} pixels"),
        ("side", "num_classes", args.classes_of_sizes, "shorter side in pixels, {} class names"),
    )
    for column, (x_key, fixed_key, fixed, label) in enumerate(columns):
        shown = [row for row in rows if row[fixed_key] == fixed]
        _draw(axes[0, column], shown, x_key, lambda row: row["seconds"])
        axes[0, column].set_yscale("log")
        axes[0, column].yaxis.set_major_formatter("{x:g}")
        _draw(axes[1, column], shown, x_key, lambda row: row["bytes"] / 1e9)
        values = image_size(fixed) if fixed_key == "side" else (fixed,)
        axes[1, column].set_xlabel(label.format(*values))
    # After all lines: it ends the automatic limits, which the row shares.
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("seconds per image")
    axes[1, 0].set_ylabel("peak memory, GB")
    axes[0, 0].legend(frameon=False)
    return figure


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], x_key: str, value: Any) -> None:
    for model, (color, marker) in STYLES.items():
        points = sorted((row[x_key], value(row)) for row in rows if row["model"] == model)
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=model)
    ticks = sorted({row[x_key] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#e5e7eb")


def print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("class names", "pixels", "", "s", "GB")
    for row in rows:
        height, width = image_size(row["side"])
        table.add_row(
            f"{row['num_classes']:,}",
            f"{height} x {width}",
            row["model"],
            f"{row['seconds']:.1f}",
            f"{row['bytes'] / 1e9:.2f}",
        )
    console.print(table)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/costs"), metavar="DIR")
    add("--config", metavar="FILE", help="of this project's model (default: GLIP-T)")
    add("--num-classes", type=int, nargs="+", default=[5, 80, 1203, 10_000], metavar="N")
    add("--side-of-names", type=int, default=400, metavar="S", help="shorter side for them")
    add("--sides", type=int, nargs="+", default=[400, 800, 1200, 1600], metavar="S")
    add("--classes-of-sizes", type=int, default=80, metavar="N", help="class names for them")
    add("--max-prompts", type=int, default=4, metavar="N", help="prompts of Grounding DINO to run")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--one", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = get_parser().parse_args(argv)
    try:
        check_minimums(args, {"max_prompts": 1, "threads": 1})
        if args.one is not None:
            print(json.dumps(measure_here(args, json.loads(args.one))))
            return 0
        rows = run(args, argv)
    except (ChildProcessError, FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_rows(rows, Console())
    path = args.output / "costs.png"
    with atomic_open(path) as file:
        plot(rows, args).savefig(file, format="png", dpi=100)
    print(f"wrote {path}\nwrote {args.output / 'costs.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
