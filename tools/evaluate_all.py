#!/usr/bin/env python
"""Every benchmark whose data is here, in one table.

    python tools/evaluate_all.py configs/glip/glip_swin_t.yaml glip_tiny_model_o365_goldg_cc_sbu.pth
    python tools/evaluate_all.py CONFIG WEIGHTS --only odinw_13 odinw_35 --output output/odinw
    python tools/evaluate_all.py --list

What is not here is named with the place where it would have to lie. The table is printed and, after
each data set, written to the output folder as report.md and report.json. A second run with the same
weights, config and data takes the results that are there and goes on with the others.

On several GPUs: --num-gpus 8, or torchrun --nproc-per-node 8 tools/evaluate_all.py ...

Exit status: 0 everything that is here was evaluated, 1 some of it failed, 2 nothing could be done.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn

from glipv2_d2.checkpoint.writing import atomic_open
from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.prompt_overrides import Overrides, override_prompts, read_overrides
from glipv2_d2.data.registration import missing_paths
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.precision import round_weights
from glipv2_d2.engine.processes import launch
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.tuning import load_model
from glipv2_d2.evaluation import OverlappingEvaluator, build_evaluator, missing_head
from glipv2_d2.evaluation.benchmark_table import (
    Outcome,
    Report,
    Results,
    to_json,
    to_text,
    without_nan,
)
from glipv2_d2.evaluation.benchmarks import Benchmark, dataset_here, select

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

logger = logging.getLogger("glipv2_d2.evaluate_all")

REPORT = "report.json"
FAILED = 1
NOT_DONE = 2

# What a file of results depends on, beside the weights.
RELEVANT = ("MODEL", "INPUT", "TEST")


@dataclass(frozen=True)
class Task:
    """What is asked of this run.

    Attributes:
        config, opts: of the model; the options win over what a benchmark asks for.
        weights: a checkpoint.
        output: folder of everything that is written.
        prompts: a user's words for classes.
    """

    config: str
    opts: tuple[str, ...]
    weights: str
    output: Path
    prompts: Overrides

    def cfg_of(self, benchmark: Benchmark) -> CfgNode:
        settings = [item for pair in benchmark.settings for item in pair]
        places = ["MODEL.WEIGHTS", self.weights, "OUTPUT_DIR", str(self.output)]
        return load_config(self.config, [*settings, *self.opts, *places])


class Models:
    """Keeps the last model, as most benchmarks ask for the same."""

    def __init__(self) -> None:
        self._of = ""
        self._model: nn.Module | None = None

    def of(self, cfg: CfgNode) -> nn.Module:
        settings = "".join(cfg[part].dump() for part in RELEVANT)
        if self._model is None or settings != self._of:
            self._model = None  # frees its memory before the next one
            self._model, self._of = load_model(cfg), settings
            round_weights(self._model, cfg)
        return self._model


def evaluate_all(task: Task, chosen: Sequence[Benchmark]) -> list[Report]:
    """Evaluate what is here and not yet evaluated, and write the report after each data set."""
    weights = {part: _digest_file(path) for part, path in _weight_files(task).items()}
    models = Models()
    outcomes: dict[str, list[Outcome]] = {benchmark.name: [] for benchmark in chosen}
    for benchmark in chosen:
        for alternatives in benchmark.datasets:
            outcomes[benchmark.name].append(
                _outcome(task, benchmark, alternatives, weights, models)
            )
            reports = [Report(b, tuple(outcomes[b.name])) for b in chosen]
            if comm.is_main_process():
                _write_report(task, reports)
    return reports


def _weight_files(task: Task) -> dict[str, str]:
    cfg = load_config(task.config, task.opts)
    files = {"weights": task.weights, "delta": cfg.MODEL.TUNING.DELTA}
    return {part: path for part, path in files.items() if path}


def _digest_file(path: str) -> str:
    with open(PathManager.get_local_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _outcome(
    task: Task,
    benchmark: Benchmark,
    alternatives: Sequence[str],
    weights: dict[str, str],
    models: Models,
) -> Outcome:
    dataset = dataset_here(alternatives)
    if dataset is None:
        return Outcome(alternatives[0], reason=f"not here: {missing_paths(alternatives[0])[0]}")
    if dataset in task.prompts:
        override_prompts(dataset, task.prompts[dataset])
    cfg = task.cfg_of(benchmark)
    if reason := missing_head(cfg, dataset):
        return Outcome(dataset, reason=reason)
    key = _key(cfg, dataset, weights)
    path = task.output / "results" / f"{dataset}.json"
    # All processes do what the main one sees.
    stored = comm.all_gather(_read_stored(path, key))[0]
    if stored is not None:
        return Outcome(dataset, stored)
    logger.info("Evaluating %s of benchmark %s", dataset, benchmark.name)
    try:
        started = time.perf_counter()
        results = _evaluate(cfg, dataset, models)
    # Whatever is wrong with one data set, hours of work with the others shall not be lost.
    except Exception as error:
        # The other processes would wait for ever for one that goes on alone.
        if comm.get_world_size() > 1:
            raise
        logger.exception("%s could not be evaluated", dataset)
        return Outcome(dataset, reason=f"failed: {type(error).__name__}: {error}", failed=True)
    if comm.is_main_process():
        seconds = round(time.perf_counter() - started, 1)
        _write_json(path, {"key": key, "results": results, "seconds": seconds})
    comm.synchronize()
    return Outcome(dataset, results)


def _key(cfg: CfgNode, dataset: str, weights: dict[str, str]) -> str:
    """Changes with everything that the results follow from."""
    relevant = cfg.clone()
    relevant.defrost()
    relevant.MODEL.DEVICE = relevant.MODEL.WEIGHTS = relevant.MODEL.TUNING.DELTA = ""
    metadata = MetadataCatalog.get(dataset)
    own = (metadata.get("json_file"), metadata.get("image_root"))
    files = [path for path in metadata.get("source_files", own) if path and Path(path).is_file()]
    known = {
        "weights": weights,
        "config": [relevant[part].dump() for part in RELEVANT],
        "prompts": metadata.get("decorations"),
        "files": [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _read_stored(path: Path, key: str) -> Results | None:
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["key"] != key:
        logger.info("%s is of other weights, settings or data: evaluated anew", path)
        return None
    return stored["results"]


def _evaluate(cfg: CfgNode, dataset: str, models: Models) -> Results:
    folder = str(Path(cfg.OUTPUT_DIR) / "inference" / dataset)
    # Reading a data set tells the names of its classes, which the evaluator needs.
    loader = build_test_loader(cfg, dataset)
    evaluator = OverlappingEvaluator(build_evaluator(cfg, dataset, folder))
    results = inference_on_dataset(models.of(cfg), loader, evaluator)
    # In processes that are not the main one there are none.
    return without_nan(results or {})


def _write_report(task: Task, reports: Sequence[Report]) -> None:
    content = {"config": task.config, "weights": task.weights, "opts": list(task.opts)}
    _write_json(task.output / REPORT, {**content, "benchmarks": to_json(reports)})
    title = f"{task.weights} with {task.config}\n\n"
    _write(task.output / "report.md", title + to_text(reports, "github") + "\n")


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(text.encode())


def list_benchmarks(chosen: Sequence[Benchmark]) -> str:
    """A line per data set: whether it is here, or where it would have to lie."""
    rows = []
    for benchmark in chosen:
        for alternatives in benchmark.datasets:
            here = dataset_here(alternatives)
            place = "here" if here else f"not here: {missing_paths(alternatives[0])[0]}"
            rows.append((benchmark.name, here or alternatives[0], place))
    return tabulate(rows, ("benchmark", "data set", ""), tablefmt="simple")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="the model's config")
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help="its checkpoint")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these benchmarks")
    parser.add_argument("--list", action="store_true", help="tell what is here, and do nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/evaluate_all"),
        metavar="DIR",
        help="where results go, and where those of an earlier run are (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='what prompts say for classes: {"data set": {"class": ["words ", "name", " words"]}}',
    )
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, last on the line; they win over a benchmark's settings",
    )
    return parser


def _read_prompts(path: Path) -> Overrides:
    prompts = read_overrides(path)
    for name in prompts:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            hint = f": did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"'{path}' has prompts of {name!r}, which is no data set{hint}")
    return prompts


def run(args: argparse.Namespace) -> None:
    """What each process does."""
    for name in ("glipv2_d2", "detectron2"):
        setup_logger(str(args.output), distributed_rank=comm.get_rank(), name=name)
    task = Task(
        config=args.config,
        opts=tuple(args.opts),
        weights=args.weights,
        output=args.output,
        prompts=_read_prompts(args.prompts) if args.prompts else {},
    )
    reports = evaluate_all(task, select(args.only))
    if comm.is_main_process():
        print(to_text(reports, "simple"))
        print(f"results in '{args.output / REPORT}', the table in '{args.output / 'report.md'}'")
    comm.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        chosen = select(args.only)
        if args.list:
            print(list_benchmarks(chosen))
            return 0
        if args.weights is None:
            raise ValueError("CONFIG and WEIGHTS are needed, or --list")
        launch(run, args)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_DONE
    return _exit_status(args.output / REPORT)


def _exit_status(report: Path) -> int:
    found = json.loads(report.read_text(encoding="utf-8"))["benchmarks"].values()
    outcomes = [outcome for benchmark in found for outcome in benchmark["datasets"].values()]
    if any(outcome["failed"] for outcome in outcomes):
        return FAILED
    return 0 if any(outcome["results"] is not None for outcome in outcomes) else NOT_DONE


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    sys.exit(main())
