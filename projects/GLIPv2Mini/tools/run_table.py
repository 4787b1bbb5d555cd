#!/usr/bin/env python
"""Train and evaluate every row of a table, once per seed, and write the table.

python projects/GLIPv2Mini/tools/run_table.py TABLE.yaml --jobs 2 --threads 1

A table is a YAML file:

    title: Ablation of the losses
    config: projects/GLIPv2Mini/configs/glipv2_mini.yaml  # from the project's root
    seeds: [1, 2, 3]
    opts: [SOLVER.MAX_ITER, 500]                       # of all rows
    rows:
      - {name: untrained, train: false}                # evaluation only
      - {name: without L_mlm, opts: [MODEL.MLM.WEIGHT, 0.0]}
      - {name: boxes alone, columns: [seen AP], opts: [...]}   # only these columns
    columns:
      - {name: seen AP, dataset: mini_stamps_seen, metric: bbox/AP}

"{seed}" in an option is replaced with the seed of the run. A JSON file beside the table stores the
results of finished runs; a run with a changed config starts again, and an interrupted one resumes
from its checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from tqdm import tqdm

from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.trainer import RESULTS_FILE
from glipv2_d2.file_writing import atomic_write, dump_json

ROOT = Path(__file__).resolve().parents[3]
TRAIN_NET = ROOT / "tools" / "train_net.py"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        row, seed: the cell of the table.
        train: False: evaluate the initial weights of the config.
        columns: the metrics.
        opts: config keys and values in turn, all of them strings.
        key: a hash of the config.
    """

    row: str
    seed: int
    train: bool
    columns: tuple[dict[str, Any], ...]
    opts: tuple[str, ...]
    key: str


def main() -> None:
    args = parse_args()
    table = read_table(args.table)
    results_file = args.results or args.table.with_suffix(".json")
    results = read_results(results_file)
    all_runs = list(runs(table))
    waiting = [run for run in all_runs if run.key not in results]
    output = args.output or Path("output") / "tables" / args.table.stem
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(execute, table, run, output, args.threads): run for run in waiting}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            run = futures[future]
            values = {place(c): value(future.result(), c) for c in run.columns}
            results[run.key] = {"row": run.row, "seed": run.seed, "values": values}
            atomic_write(results_file, dump_json(results, indent=1))
    text = markdown(table, all_runs, results)
    atomic_write(results_file.with_suffix(".md"), text)
    print(text)
    print(f"results in {results_file}, the table in {results_file.with_suffix('.md')}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="the YAML file")
    parser.add_argument("--results", type=Path, help="default: <table>.json beside the table")
    parser.add_argument("--output", type=Path, help="of the runs, default: output/tables/<table>")
    parser.add_argument("--jobs", type=int, default=1, help="number of concurrent runs")
    parser.add_argument("--threads", type=int, default=1, help="number of threads per run")
    return parser.parse_args()


def read_table(path: Path) -> dict[str, Any]:
    """The content of a table's file.

    Raises:
        SystemExit: a key is missing.
    """
    table = yaml.safe_load(path.read_text(encoding="utf8"))
    missing = {"title", "config", "seeds", "rows", "columns"} - set(table)
    if missing:
        raise SystemExit(f"{path} has no {sorted(missing)}; see run_table.py --help")
    return table


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def runs(table: Mapping[str, Any]) -> Iterator[Run]:
    """Every row with every seed, first all rows with the first seed.

    Raises:
        SystemExit: a row has an unknown column.
    """
    for seed in table["seeds"]:
        for row in table["rows"]:
            columns = columns_of(table, row)
            datasets = dict.fromkeys(column["dataset"] for column in columns)
            opts = [*table.get("opts", ()), *row.get("opts", ()), "SEED", seed]
            opts += ["DATASETS.TEST", tuple(datasets)]
            texts = tuple(str(opt).replace("{seed}", str(seed)) for opt in opts)
            train = row.get("train", True)
            chosen = choices(load_config(str(ROOT / table["config"]), list(texts)), load_config())
            key = hashlib.sha256(json.dumps([train, chosen]).encode()).hexdigest()[:16]
            yield Run(row["name"], seed, train, columns, texts, key)


def columns_of(table: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    column_of = {column["name"]: column for column in table["columns"]}
    names = row.get("columns", list(column_of))
    unknown = sorted(set(names) - set(column_of))
    if unknown:
        raise SystemExit(
            f"row {row['name']!r} names the columns {unknown}, which are not in the table; it has "
            f"{list(column_of)}"
        )
    return tuple(column_of[name] for name in names)


def choices(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    """The values of a config that differ from the defaults, so that new keys change nothing."""
    chosen = {}
    for name, value in sorted(cfg.items()):
        if isinstance(value, CfgNode):
            inner = choices(value, defaults.get(name, CfgNode()))
            if inner:
                chosen[name] = inner
        elif name not in defaults or value != defaults[name]:
            chosen[name] = value
    return chosen


def execute(table: Mapping[str, Any], run: Run, output: Path, threads: int) -> dict[str, Any]:
    """The results of a run per dataset.

    Raises:
        SystemExit: the run failed; the message has the path of its log.
    """
    folder = output / run.key
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN_NET), "--config-file", str(ROOT / table["config"])]
    command += ["--resume"] if run.train else ["--eval-only"]
    command += [*run.opts, "OUTPUT_DIR", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / "command.log").open("a", encoding="utf8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{run.row!r}, seed {run.seed}, failed: see {folder / 'command.log'}")
    return json.loads((folder / RESULTS_FILE).read_text(encoding="utf8"))


def markdown(table: Mapping[str, Any], all_runs: Sequence[Run], results: Mapping[str, Any]) -> str:
    """The table: mean and range over the finished seeds."""
    names = [column["name"] for column in table["columns"]]
    lines = [f"{table['title']}", "", "| " + " | ".join(["", *names, "seeds"]) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in table["rows"]:
        found = [
            results[run.key]["values"]
            for run in all_runs
            if run.row == row["name"] and run.key in results
        ]
        measured = columns_of(table, row)
        cells = [
            cell([values[place(c)] for values in found] if c in measured else [])
            for c in table["columns"]
        ]
        lines.append("| " + " | ".join([row["name"], *cells, str(len(found))]) + " |")
    return "\n".join(lines) + "\n"


def place(column: Mapping[str, Any]) -> str:
    """Dataset and metric of a column."""
    return f"{column['dataset']}/{column['metric']}"


def value(results: Mapping[str, Any], column: Mapping[str, Any]) -> float:
    """The value of a column, such as bbox/AP of a dataset."""
    found: Any = results[column["dataset"]]
    for part in column["metric"].split("/"):
        found = found[part]
    return float(found)


def cell(values: list[float]) -> str:
    """Mean and range.

    >>> cell([1.0, 2.0]), cell([1.0]), cell([])
    ('1.5 (1.0-2.0)', '1.0', '-')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
