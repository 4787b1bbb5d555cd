"""Train the model of a config, with Detectron2's arguments; or evaluate it with --eval-only.

Examples:
  glipv2 train --config mine.yaml SOLVER.MAX_ITER 1000 OUTPUT_DIR output/mine
  glipv2 train --config mine.yaml --resume
  glipv2 train --model glip-t --eval-only DATASETS.TEST "('coco_2017_val',)"

The model is --model NAME, --config FILE (or --config-file) and --weights FILE, with --device and
--precision, as in every command; config overrides come last. The terminal shows the progress and
the results, log.txt in OUTPUT_DIR has the rest; tools/train_net.py is the same with Detectron2's
output.

exit codes:
  0    done
  2    the command failed: the last line has the reason
  130  ended by Ctrl-C: --resume continues from the last checkpoint
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glipv2_cli.arguments import (
    DEFAULT_MODEL,
    add_model_arguments,
    log_to_file,
    model_files,
    print_to_file,
)
from glipv2_cli.progress import ProgressBar

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from glipv2_d2.engine.train.reporting import OnProgress


def get_parser() -> argparse.ArgumentParser:
    """The parser of Detectron2's training scripts."""
    from detectron2.engine import default_argument_parser

    parser: argparse.ArgumentParser = default_argument_parser()
    parser.description, parser.epilog = __doc__, None
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    # The tokenizer runs inside loader processes that are forked after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = get_parser().parse_args(translate(sys.argv[1:] if argv is None else argv))
    import torch

    from glipv2_d2.engine.host_memory import keep_freed_memory
    from glipv2_d2.engine.train.distributed import launch

    if not torch.cuda.is_available():
        keep_freed_memory()
        args.opts = ["MODEL.DEVICE", "cpu", *args.opts]
    launch(run, args)
    return 0


def translate(argv: Sequence[str]) -> list[str]:
    """Detectron2's arguments for those of a subcommand.

    Raises:
        FileNotFoundError, ValueError: the model is unknown, or its weights cannot be found.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_model_arguments(parser, default=None)
    args, rest = parser.parse_known_args(list(argv))
    opts, first = list(args.opts), []
    for value, key in ((args.device, "MODEL.DEVICE"), (args.precision, "TEST.PRECISION")):
        if value is not None:
            opts += [key, value]
    if args.model is not None or args.config is not None or args.weights is not None:
        if args.config is None and args.model is None:
            args.model = DEFAULT_MODEL
        config, weights = model_files(args)
        first = ["--config-file", config]
        if weights:
            opts = ["MODEL.WEIGHTS", weights, *opts]
    # First, as what follows may be config overrides to the end.
    return [*first, *rest, *opts]


def run(args: argparse.Namespace) -> None:
    """Train or evaluate; called in each process."""
    from detectron2.utils import comm

    from glipv2_d2.engine.setup import load_config
    from glipv2_d2.engine.train.output_lock import output_lock
    from glipv2_d2.engine.train.reporting import ReportingTrainer, evaluate_weights
    from glipv2_d2.engine.train.trainer import FINAL_FILE, RESULTS_FILE

    cfg = load_config(args.config_file, args.opts)
    output, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    name = "log.txt" if rank == 0 else f"log.rank{rank}.txt"
    with contextlib.ExitStack() as stack:
        if not args.eval_only:
            # Before the first file is written.
            stack.enter_context(output_lock(output))
        log = stack.enter_context(log_to_file(output, name, option="OUTPUT_DIR"))
        set_up(cfg, is_evaluation=args.eval_only)
        on_progress = stack.enter_context(_progress(is_shown=rank == 0))
        stack.enter_context(print_to_file(log))
        if args.eval_only:
            on_progress("evaluate", 0, 0)
            results = evaluate_weights(cfg, resume=args.resume)
        else:
            trainer = ReportingTrainer(cfg, on_progress)
            trainer.resume_or_load(resume=args.resume)
            trainer.train()
            results = trainer.last_results
    if rank == 0:
        if results:
            print(results_text(json.loads((output / RESULTS_FILE).read_bytes())))
        files = (RESULTS_FILE if results else "", "" if args.eval_only else FINAL_FILE, log.name)
        print(f"wrote to {output}: {', '.join(filter(None, files))}")


def set_up(cfg: CfgNode, *, is_evaluation: bool) -> None:
    """What Detectron2's ``default_setup`` does besides its output on the terminal."""
    import logging

    import torch
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng

    from glipv2_d2.file_writing import atomic_write

    if comm.is_main_process():
        logging.getLogger(__name__).info("%s\n%s", collect_env_info(), cfg.dump())
        atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not is_evaluation:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


@contextlib.contextmanager
def _progress(*, is_shown: bool) -> Iterator[OnProgress]:
    """What shows the progress: a bar, or nothing."""
    if not is_shown:
        yield lambda _text, _done, _total: None
        return
    with ProgressBar(desc="load the model and the data") as bar:

        def show(text: str, done: int, total: int) -> None:
            bar.describe(text, total=total or None)
            bar.move_to(done)

        yield show


def results_text(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line per dataset and task, without the values of single classes."""
    lines = []
    for dataset, tasks in results.items():
        for task, values in tasks.items():
            numbers = [
                f"{metric} {'nan' if value is None else format(value, '.1f')}"
                for metric, value in values.items()
                if not metric.startswith("AP-")
                and (value is None or isinstance(value, int | float))
            ]
            lines.append(f"{dataset}, {task}: {', '.join(numbers)}")
    return "\n".join(lines)
