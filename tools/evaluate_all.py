#!/usr/bin/env python
"""Evaluate a model on every benchmark whose data are available, in one table.

    python tools/evaluate_all.py configs/glip/glip_swin_t.yaml glip_tiny_model_o365_goldg_cc_sbu.pth
    python tools/evaluate_all.py CONFIG WEIGHTS --only odinw_13 odinw_35 --output output/odinw
    python tools/evaluate_all.py --list

Missing datasets are listed with the path where they are expected. The table is printed, and written
to the output folder as report.md and report.json after each dataset. A second run with the same
weights, config and data reuses the stored results and continues with the remaining datasets.

On several GPUs: --num-gpus 8, or torchrun --nproc-per-node 8 tools/evaluate_all.py ...

Exit status: 0 all available datasets were evaluated, 1 some failed, 2 none could be evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from glipv2_d2.engine.benchmark_evaluation import (
    REPORT_FILE,
    TABLE_FILE,
    EvaluationRun,
    availability_table,
    evaluate_benchmarks,
    read_prompt_overrides,
)
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.train.distributed import launch
from glipv2_d2.evaluation.benchmark_table import to_text
from glipv2_d2.evaluation.benchmarks import select
from glipv2_d2.projects import load_projects

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FAILED = 1
NOT_EVALUATED = 2


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="the model's config")
    add("weights", nargs="?", metavar="WEIGHTS", help="its checkpoint")
    add("--only", nargs="+", default=[], metavar="NAME", help="only these benchmarks")
    add("--list", action="store_true", help="list the available datasets and exit")
    add(
        "--output",
        type=Path,
        default=Path("output/evaluate_all"),
        metavar="DIR",
        help="folder of the results, also of an earlier run (default: %(default)s)",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='prompt strings of classes: {"dataset": {"class": ["prefix ", "name", " suffix"]}}',
    )
    add("--num-gpus", type=int, default=1)
    add("--num-machines", type=int, default=1)
    add("--machine-rank", type=int, default=0)
    add("--dist-url", default="auto")
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides, last on the command line; they override a benchmark's settings",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluate; called in each process."""
    for name in ("glipv2_d2", "detectron2"):
        setup_logger(str(args.output), distributed_rank=comm.get_rank(), name=name)
    evaluation = EvaluationRun(
        config=args.config,
        opts=tuple(args.opts),
        weights=args.weights,
        output=args.output,
        prompts=read_prompt_overrides(args.prompts) if args.prompts else {},
    )
    reports = evaluate_benchmarks(evaluation, select(args.only))
    if comm.is_main_process():
        print(to_text(reports, "simple"))
        print(f"results in '{args.output / REPORT_FILE}', table in '{args.output / TABLE_FILE}'")
    comm.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    load_projects()
    try:
        benchmarks = select(args.only)
        if args.list:
            print(availability_table(benchmarks))
            return 0
        if args.weights is None:
            raise ValueError("CONFIG and WEIGHTS are required, or --list")
        launch(run, args)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_EVALUATED
    return _exit_status(args.output / REPORT_FILE)


def _exit_status(report: Path) -> int:
    benchmarks = json.loads(report.read_text(encoding="utf-8"))["benchmarks"].values()
    outcomes = [outcome for benchmark in benchmarks for outcome in benchmark["datasets"].values()]
    if any(outcome["failed"] for outcome in outcomes):
        return FAILED
    return 0 if any(outcome["results"] is not None for outcome in outcomes) else NOT_EVALUATED


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    sys.exit(main())
