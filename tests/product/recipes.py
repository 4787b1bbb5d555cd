"""Take the first steps of every recipe with its full-size network, and write them as a table.

    make recipes                                    # all recipes that the JSON file lacks
    .venv/bin/python tests/product/recipes.py --only configs/joint/glipv2_swin_l.yaml

Each recipe runs in a process of its own, on a few generated images in the formats of the published
files, with random weights: two iterations with one small image each, then its evaluation. Both
files are written after each recipe. One that failed, or did not end within --seconds, is run again
by the next call. A recipe with Swin-L needs about 12 GB of memory, and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "tests", ROOT / "projects" / "GLIPv2Mini")]

from helpers.clip import vocabulary_directory  # noqa: E402
from helpers.published_data import write_all  # noqa: E402
from helpers.recipes import RECIPES, FirstSteps, first_steps, recipe_config, write_base  # noqa: E402

from glipv2_d2.file_writing import atomic_open  # noqa: E402

IMAGE_SIZE = 160
OPTS = (
    *("INPUT.MIN_SIZE_TRAIN", (IMAGE_SIZE,), "INPUT.MAX_SIZE_TRAIN", 2 * IMAGE_SIZE),
    *("INPUT.MIN_SIZE_TEST", IMAGE_SIZE, "INPUT.MAX_SIZE_TEST", 2 * IMAGE_SIZE),
    *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.ACCUMULATION_STEPS", 1, "SOLVER.MAX_ITER", 2),
)
# The metric of a task that the table names; the JSON file has the others.
MAIN_METRICS = ("AP", "R@1", "mIoU", "accuracy", "CIDEr", "F1_all")
# float32: a weight, its gradient, the two moments of AdamW.
BYTES = 4
GB, M = 1e9, 1e6

Row = dict[str, Any]

HEADER = """# The recipes, one by one

Every recipe with its full-size network: its first two iterations and its evaluation, on generated
images in the layout and the formats of the published files. Config, datasets, readers, losses,
optimizer, checkpoints and evaluators are those of the recipe. Weights are random, an iteration has
one image of {size} pixels, and there is no warm-up; one CPU thread, fp32. Written by

    make recipes

`zero_shot` configs only evaluate; here they train as GLIP's configs do, which they inherit.
`tests/configs/test_recipe_first_steps.py` takes the same steps with tiny networks and larger
batches, and checks that exactly the parameters move that a recipe trains.

- *Parameters*: with the heads of the losses. *Trained*: those of the optimizer. *Moved*: how many
  of its tensors these two iterations changed; no other tensor has other bits.
- *Per rank*: weights, gradients, AdamW's two moments, the moving average if there is one, all in
  fp32; computed. Activations come on top, which depend on images and batch.
- *First batch*: CPU seconds to build network, optimizer and loader, and to load the first batch.
- *Peak*: resident memory of the process.

**What these numbers are not.** No recipe was trained: there are no scores. Time and memory of
800 x 1333 images on a GPU were not measured; `tools/gpu_check.py` does that
([how](performance.md#on-a-gpu)).

| {columns} |
|{rules}
"""
COLUMNS = (
    "recipe",
    "parameters, M",
    "trained, M",
    "moved",
    "per rank, GB",
    "first batch, s",
    "peak, GB",
    "losses",
    "evaluation",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--again", action="store_true", help="also recipes with a result")
    parser.add_argument("--seconds", type=float, default=1800, help="limit of a recipe")
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "recipes.json")
    parser.add_argument("--markdown", type=Path, default=ROOT / "docs" / "recipes.md")
    parser.add_argument("--run", nargs=2, metavar=("RECIPE", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_here(args.run[0], Path(args.run[1]))
        return
    rows = read_rows(args.json)
    chosen = args.only or RECIPES
    waiting = [name for name in chosen if args.again or "error" in rows.get(name, {"error": ""})]
    with tempfile.TemporaryDirectory() as folder:
        # Configs name files below datasets/.
        write_all(Path(folder) / "datasets")
        for number, name in enumerate(waiting, start=1):
            print(f"[{number}/{len(waiting)}] {name} ...", end=" ", flush=True)
            begin = time.monotonic()
            rows[name] = run_in_process(name, Path(folder), args.seconds)
            outcome = rows[name].get("error", "done")
            print(f"{outcome} ({time.monotonic() - begin:.0f} s)", flush=True)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write(args.json, json.dumps(rows, indent=1) + "\n")
            write(args.markdown, table(rows))
    sys.exit(any("error" in rows.get(name, {}) for name in chosen))


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of an earlier run; none without its file."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())
        return {name: dict(rows[name]) for name in RECIPES if name in rows}
    except (ValueError, TypeError) as error:
        sys.exit(f"'{path}' is not a file of this command ({error}): remove it, or give another")


def write(path: Path, text: str) -> None:
    with atomic_open(path) as file:
        file.write(text.encode())


def run_in_process(name: str, folder: Path, seconds: float) -> Row:
    """The row of a recipe; with ``error`` in place of results if it fails.

    Args:
        folder: has the datasets.
    """
    env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as output:
        result = Path(output) / "row.json"
        command = [sys.executable, "-W", "ignore", __file__, "--run", name, str(result)]
        try:
            done = subprocess.run(
                command, cwd=folder, env=env, timeout=seconds, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not finished within {seconds:.0f} s"}
        if done.returncode == 0:
            row: Row = json.loads(result.read_text())
            return row
        log = done.stderr.decode(errors="replace").strip()
        print(log[-2000:], file=sys.stderr)
        return {"error": f"exit code {done.returncode}: {log.rpartition(chr(10))[2]:.200}"}


def run_here(name: str, result: Path) -> None:
    """Run a recipe in this process, with its outputs beside ``result``, and write its row."""
    opts: list[Any] = list(OPTS)
    if "_clip" in name:
        # Of the same size: the package of CLIP's vocabulary may not be installed.
        opts += ["MODEL.LANGUAGE_BACKBONE.MODEL", vocabulary_directory()]
    cfg = recipe_config(name, result.parent, opts)
    write_base(cfg)
    gc.collect()
    forget_peak_memory()
    steps = first_steps(cfg)
    files = [path.name for path in result.parent.glob("inference/*/vqa_results.json")]
    result.write_text(json.dumps(row_of(steps, files, has_average=cfg.SOLVER.EMA_DECAY > 0)))


def row_of(steps: FirstSteps, files: list[str], *, has_average: bool) -> Row:
    """A row from the first steps.

    Args:
        files: results without metrics.
        has_average: the training keeps a moving average of what it trains.
    """
    total = sum(steps.parameters.values())
    trained = sum(steps.parameters[name] for name in steps.trained)
    if frozen := steps.moved - steps.trained:
        raise ValueError(f"frozen, but changed: {sorted(frozen)[:5]}")
    return {
        "parameters": total,
        "trained": trained,
        "trained_tensors": len(steps.trained),
        "moved_tensors": len(steps.moved),
        "bytes_per_rank": BYTES * (total + (4 if has_average else 3) * trained),
        "first_batch_s": round(steps.seconds_to_first_batch, 1),
        "peak_bytes": peak_memory(),
        "losses": {name: round(value, 3) for name, value in steps.losses.items()},
        "evaluation": {
            # Without those of single classes and thresholds.
            dataset: [f"{task}/{x}" for task, found in tasks.items() for x in found if "-" not in x]
            for dataset, tasks in steps.results.items()
        },
        "files": files,
    }


def forget_peak_memory() -> None:
    """Start a new peak, where the kernel can (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory() -> int:
    """Bytes."""
    path = Path("/proc/self/status")
    if path.exists():
        [line] = [x for x in path.read_text().splitlines() if x.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def table(rows: dict[str, Row]) -> str:
    """The document, with a line for every recipe."""
    lines = [f"| `{name}` | {cells(rows.get(name, {'error': 'not run'}))} |" for name in RECIPES]
    header = HEADER.format(
        size=IMAGE_SIZE, columns=" | ".join(COLUMNS), rules="---|" * len(COLUMNS)
    )
    return header + "\n".join(lines) + "\n"


def cells(row: Row) -> str:
    if "error" in row:
        return " | ".join(["-"] * (len(COLUMNS) - 2) + [row["error"].replace("|", "/")])
    results = [
        f"{dataset}: " + ", ".join(x for x in names if x.split("/")[1] in MAIN_METRICS)
        for dataset, names in row["evaluation"].items()
        if names
    ]
    results += [f"`{name}` for the evaluation server" for name in row["files"] if not results]
    trained = f"{row['trained'] / M:.{1 if row['trained'] > M else 3}f}"
    moved = f"{row['moved_tensors']} of {row['trained_tensors']}"
    numbers = (f"{row['parameters'] / M:.1f}", trained, moved)
    measured = (
        f"{row['bytes_per_rank'] / GB:.2f}",
        f"{row['first_batch_s']:.0f}",
        f"{row['peak_bytes'] / GB:.1f}",
    )
    losses = ", ".join(name.removeprefix("loss_") for name in row["losses"])
    return " | ".join([*numbers, *measured, losses, "; ".join(results)])


if __name__ == "__main__":
    main()
