"""Fine-tune a model on your data: writes the changed weights and a report.

Examples:
  glipv2 finetune --data my_data --minutes 20
  glipv2 finetune --data my_data --model glip-t --policy prompt --epochs 30 --batch 8
  glipv2 finetune --data my_data --shots 10 --output output/ten

The folder has COCO's format as Roboflow, CVAT and Label Studio export it, or YOLO's with data.yaml.
Afterwards Predictor("output/mine").predict("photo.jpg") detects its class names. report.html has
the results before and after. A run that was killed continues with --resume.

exit codes:
  0    done
  2    the command failed: the last line has the reason
  130  ended by Ctrl-C, 143: by SIGTERM; the best weights so far are in delta.pth
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_model_arguments,
    config_overrides,
    is_repository,
    log_to_file,
    print_to_file,
)

if TYPE_CHECKING:
    from glipv2_d2.engine.finetune.finetune_report import FinetuneReport
    from glipv2_d2.engine.finetune.finetune_trainer import OnProgress, Progress
    from glipv2_d2.engine.finetune.job import FinetuneJob
    from glipv2_d2.engine.finetune.preparation import FinetuneArguments
    from glipv2_d2.model_zoo import ModelFiles

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143
SHOTS = (1, 3, 5, 10)
DEFAULT_SEED = 3
ONE_FILE = "one_file"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="images and annotations")
    add("--output", type=Path, default=Path("output/finetune"), metavar="DIR", help="(%(default)s)")
    add("--resume", action="store_true", help="continue an interrupted training")
    add("--export", choices=[ONE_FILE], help="also write the model as one file")
    _add_training_arguments(parser.add_argument_group("training"))
    add_model_arguments(parser)
    return parser


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, metavar="N", help="passes over the images")
    length.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="of the whole command (default: until evaluations no longer improve)",
    )
    add = group.add_argument
    add(
        "--policy",
        default="full",
        help="which parameters are trained: full, linear_probe, prompt, text_only, lora, "
        "mask_heads, text_heads (default: %(default)s)",
    )
    add("--batch", type=int, metavar="B", help="images of an iteration, of all GPUs (default: 4)")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes, one for each GPU")
    add(
        "--shots",
        type=int,
        choices=SHOTS,
        help="images per class: the published split of --seed in a folder of ODinW, else sampled",
    )
    add(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        help="published few-shot results: 3, 30, 300",
    )
    add(
        "--base-sets",
        type=lambda text: [name for name in text.split(",") if name],
        metavar="A,B",
        help='datasets to measure forgetting (default: the base\'s own; "": none)',
    )
    add(
        "--writer",
        dest="writers",
        action="append",
        choices=["wandb", "mlflow"],
        default=[],
        help="where metrics and pictures go besides TensorBoard",
    )


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    args = get_parser().parse_args(argv)
    # The tokenizer runs inside loader processes that are forked after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from glipv2_d2.engine.finetune.finetune_trainer import Terminated
    from glipv2_d2.engine.train.distributed import launch

    # Of Detectron2's launch.
    args.num_machines, args.machine_rank, args.dist_url = 1, 0, "auto"
    args.started = started
    try:
        launch(run, args)
    except (OSError, KeyError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (Terminated, KeyboardInterrupt) as error:
        print(
            f"ended; what was trained is in {args.output}, and --resume continues", file=sys.stderr
        )
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return 0


def run(args: argparse.Namespace) -> None:
    """The fine-tuning, in each process."""
    import torch
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    from glipv2_d2.engine.finetune.preparation import prepare
    from glipv2_d2.engine.host_memory import keep_freed_memory
    from glipv2_d2.engine.train.output_lock import output_lock

    if not torch.cuda.is_available():
        keep_freed_memory()
    arguments = _arguments(args)
    is_main = comm.is_main_process()
    # Before the first file is written.
    with output_lock(args.output), contextlib.ExitStack() as stack:
        if is_main:
            log = stack.enter_context(log_to_file(args.output))
        job = prepare(arguments)
        seed_all_rng(arguments.seed + comm.get_rank())
        on_progress = stack.enter_context(_progress_bar(job)) if is_main else None
        # pycocotools prints its tables.
        stack.enter_context(print_to_file(log if is_main else Path(os.devnull)))
        report = job.run(started=args.started, on_progress=on_progress)
        stack.close()
        if report is not None:
            _finish(job, report, args, log)


def _arguments(args: argparse.Namespace) -> FinetuneArguments:
    from glipv2_d2.engine.finetune.policies import policy_names
    from glipv2_d2.engine.finetune.preparation import FinetuneArguments
    from glipv2_d2.hub import check_stands_alone

    if args.policy not in policy_names():
        raise ValueError(f"--policy is {args.policy!r}; choose one of {policy_names()}")
    if args.export == ONE_FILE:
        check_stands_alone(args.policy)
    base, files = _base(args)
    return FinetuneArguments(
        data=args.data,
        base=base,
        files=files,
        output=args.output,
        policy=args.policy,
        epochs=args.epochs,
        minutes=args.minutes,
        batch=args.batch,
        shots=args.shots,
        seed=args.seed,
        base_sets=args.base_sets,
        writers=args.writers,
        opts=config_overrides(args),
        resume=args.resume,
    )


def _base(args: argparse.Namespace) -> tuple[str, ModelFiles]:
    """The base model as the result names it, and its files."""
    from glipv2_d2.config import named_config_file
    from glipv2_d2.hub import pretrained_files
    from glipv2_d2.model_folder import base_of
    from glipv2_d2.model_zoo import ModelFiles, model_files

    if args.weights is not None:
        if not Path(args.weights).is_file():
            raise FileNotFoundError(f"--weights {args.weights} does not exist")
        config = Path(args.config) if args.config else named_config_file(args.model)
        return str(Path(args.weights).resolve()), ModelFiles(config, Path(args.weights))
    if args.config is not None:
        raise ValueError(f"--config {args.config} needs --weights, those of the base model")
    if is_repository(args.model):
        files = pretrained_files(args.model)
        assert files.weights is not None
        # A fine-tuned model has the base of its delta.
        return base_of(files.config) or str(files.weights.resolve()), files
    files = model_files(args.model)
    if files.weights is None:
        raise ValueError(f"no weights of {args.model!r} were published; pass --weights")
    return args.model, files


@contextlib.contextmanager
def _progress_bar(job: FinetuneJob) -> Iterator[OnProgress]:
    """A bar with the loss, the best result so far and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    from glipv2_d2.engine.finetune.time_plan import format_seconds

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    with Bar(*columns, console=Console(file=sys.stderr), redirect_stdout=False) as bar:
        for note in job.notes:
            bar.console.print(note, markup=False, soft_wrap=True)
        task = bar.add_task("evaluate the base", total=None, numbers="")

        def show(progress: Progress) -> None:
            total = progress.num_iterations
            of_total = "" if total is None else f"/{total}"
            parts = [f"{progress.iteration}{of_total} iterations"]
            if progress.loss is not None:
                parts.append(f"loss {progress.loss:.3f}")
            if progress.best is not None:
                parts.append(f"best {job.cfg.SOLVER.BEST_METRIC} {progress.best:.1f}")
            least = "at least " if progress.is_minimum else ""
            parts.append(f"{least}{format_seconds(progress.seconds_left)} left")
            bar.update(
                task,
                description="train",
                total=total,
                completed=progress.iteration,
                numbers=", ".join(parts),
            )

        yield show


def _finish(job: FinetuneJob, report: FinetuneReport, args: argparse.Namespace, log: Path) -> None:
    """Write the report and the export, and print what there is."""
    from glipv2_d2.engine.finetune.report_html import render_html
    from glipv2_d2.file_writing import atomic_write

    written = [*report.write(job.output), job.output / "report.html"]
    atomic_write(written[-1], render_html(report, job.report_files()))
    if args.export == ONE_FILE:
        from glipv2_d2 import Predictor
        from glipv2_d2.hub import save_one_file
        from glipv2_d2.model_folder import SINGLE_FILE_SUFFIX

        predictor = Predictor(job.output, device="cpu", opts=["TEST.PRECISION", "fp32"])
        path = job.output / f"{job.output.resolve().name}{SINGLE_FILE_SUFFIX}"
        save_one_file(predictor.model, predictor.cfg, path)
        written.append(path)
    print(report.text())
    for file in [*written, job.output / "delta.pth", log]:
        print(f"wrote {file}")
    print(f'Predictor("{job.output}").predict("photo.jpg") detects these classes')


if __name__ == "__main__":
    sys.exit(main())
