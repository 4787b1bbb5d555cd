"""Evaluate a model on every benchmark whose data are available, in one table.

Examples:
  glipv2 evaluate --list
  glipv2 evaluate --model glip-t --output output/glip_t
  glipv2 evaluate --config my.yaml --weights my.pth --only coco odinw_13 --output output/mine

Missing datasets are listed with the path where they are expected. The table is printed, and written
to the output folder as report.md and report.json after each dataset; log.txt has the rest. A second
run with the same weights, config and data reuses the stored results and continues with the
remaining datasets.

On several GPUs: --num-gpus 8, or torchrun --nproc-per-node 8 -m glipv2_cli evaluate ...

exit codes:
  0  all available datasets were evaluated
  1  some failed, see the table and log.txt
  2  none could be evaluated: the last line has the reason
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from glipv2_cli.arguments import (
    add_model_arguments,
    config_overrides,
    log_to_file,
    model_files,
    print_to_file,
)
from glipv2_cli.progress import ProgressBar

FAILED = 1
NOT_EVALUATED = 2


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="only these benchmarks")
    add("--list", action="store_true", help="list the available datasets and exit")
    add(
        "--output",
        type=Path,
        default=Path("output/evaluate"),
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
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    import torch

    from glipv2_d2.engine.benchmark_evaluation import REPORT_FILE, availability_table
    from glipv2_d2.engine.host_memory import keep_freed_memory
    from glipv2_d2.engine.train.distributed import launch
    from glipv2_d2.evaluation.benchmarks import select
    from glipv2_d2.projects import load_projects

    # The tokenizer runs inside loader processes that are forked after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    load_projects()
    benchmarks = select(args.only)
    if args.list:
        print(availability_table(benchmarks))
        return 0
    if not torch.cuda.is_available():
        keep_freed_memory()
    # Here, so that several processes do not download them.
    args.files = _model_files(args)
    launch(run, args)
    code = _exit_status(args.output / REPORT_FILE)
    if code == NOT_EVALUATED:
        raise FileNotFoundError("no dataset could be evaluated: the table has the missing files")
    return code


def run(args: argparse.Namespace) -> None:
    """Evaluate; called in each process."""
    from detectron2.utils import comm

    from glipv2_d2.data.checks import no_progress
    from glipv2_d2.engine.benchmark_evaluation import (
        TABLE_FILE,
        EvaluationRun,
        evaluate_benchmarks,
        read_prompt_overrides,
    )
    from glipv2_d2.evaluation.benchmark_table import to_text
    from glipv2_d2.evaluation.benchmarks import select

    is_main, rank = comm.is_main_process(), comm.get_rank()
    config, weights = args.files
    evaluation = EvaluationRun(
        config=config,
        opts=tuple(config_overrides(args)),
        weights=weights,
        output=args.output,
        prompts=read_prompt_overrides(args.prompts) if args.prompts else {},
        progress=ProgressBar if is_main else no_progress,
    )
    name = "log.txt" if is_main else f"log.rank{rank}.txt"
    with log_to_file(args.output, name) as log, print_to_file(log):
        reports = evaluate_benchmarks(evaluation, select(args.only))
    if is_main:
        print(to_text(reports, "simple"))
        print(f"results in {args.output}: {TABLE_FILE}, report.json, {log.name}")
    comm.synchronize()


def _model_files(args: argparse.Namespace) -> tuple[str, str]:
    from glipv2_d2.engine.setup import load_config

    config, weights = model_files(args)
    weights = weights or load_config(config, config_overrides(args)).MODEL.WEIGHTS
    if not weights:
        raise ValueError(f"MODEL.WEIGHTS of '{config}' is empty: pass --weights FILE")
    return config, weights


def _exit_status(report: Path) -> int:
    benchmarks = json.loads(report.read_text(encoding="utf-8"))["benchmarks"].values()
    outcomes = [outcome for benchmark in benchmarks for outcome in benchmark["datasets"].values()]
    if any(outcome["failed"] for outcome in outcomes):
        return FAILED
    return 0 if any(outcome["results"] is not None for outcome in outcomes) else NOT_EVALUATED
