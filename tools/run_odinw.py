#!/usr/bin/env python
"""Few-shot fine-tuning on ODinW: all sets, shots, seeds and policies, and the table of averages.

    python tools/run_odinw.py --model glip-t --sets 13 --policies full prompt linear_probe
    python tools/run_odinw.py --sets pothole PascalVOC --shots 1 10 --output output/two_sets
    python tools/run_odinw.py --output output/odinw --table-only

Every job trains on a published few-shot split, until the validation set no longer improves, and
evaluates its best weights on the test set. jobs.jsonl lists the jobs, jobs/ has their folders,
table.md and table.json have the averages over the sets with their spread over the seeds. A job with
a result is not run again, and an interrupted one continues.

Several GPUs or machines with a shared folder: start the same command on each; a job that another
process runs is left to it. Without a shared folder: --part 1/4, --part 2/4 and so on; then copy the
jobs/ folders and one jobs.jsonl into one folder, and run --table-only there.

exit codes:
  0    all jobs of the list (with --part: of the part) have a result
  1    some have none: table.md lists them
  2    the command failed: the last line has the reason
  130  ended by Ctrl-C, 143: by SIGTERM; the same command continues
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from pathlib import Path

import torch

from glipv2_cli.arguments import (
    add_model_arguments,
    config_overrides,
    log_to_file,
    model_config,
    model_files,
    print_to_file,
)
from glipv2_d2.command_line import escape_unprintable_output, report_failure
from glipv2_d2.data.readers.odinw import FEW_SHOT_SEEDS, FEW_SHOTS
from glipv2_d2.engine.finetune.finetune_trainer import Terminated
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.odinw.job_run import (
    ERROR_FILE,
    OdinwRun,
    absent_data,
    check_data,
    job_folder,
    read_result,
    remove_checkpoints,
    run_job,
)
from glipv2_d2.engine.odinw.jobs import (
    VALIDATION_SETS,
    Job,
    job_list,
    read_jobs,
    write_jobs,
)
from glipv2_d2.engine.odinw.result_table import read_table
from glipv2_d2.engine.shards import Part, check_settings
from glipv2_d2.engine.train.output_lock import output_lock
from glipv2_d2.file_writing import atomic_write
from glipv2_d2.projects import load_projects

INCOMPLETE, INTERRUPTED, TERMINATED = 1, 130, 143

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="+", default=["13"], metavar="SET", help="13, 35 or names (default: 13)")
    add(
        "--shots",
        nargs="+",
        type=int,
        default=list(FEW_SHOTS),
        metavar="N",
        help="images per class: 1, 3, 5, 10; 0: all images, with the first seed only",
    )
    add("--seeds", nargs="+", type=int, default=list(FEW_SHOT_SEEDS), metavar="N")
    add("--policies", nargs="+", default=["full"], metavar="NAME", help="full prompt linear_probe")
    add(
        "--validation",
        choices=VALIDATION_SETS,
        default="full",
        help="set that selects the weights: full, as in GLIP's commands, or the published few-shot "
        "one (default: %(default)s)",
    )
    add("--output", type=Path, default=Path("output/odinw"), metavar="DIR", help="(%(default)s)")
    add("--part", default="1/1", metavar="I/N", help="of the list of jobs")
    add("--skip-missing", action="store_true", help="run the jobs whose data are here")
    add("--keep-files", action="store_true", help="keep deltas and detections on the test sets")
    add("--table-only", action="store_true", help="write the table of the jobs in jobs.jsonl")
    add_model_arguments(parser, default="glip-t")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    escape_unprintable_output()
    load_projects()
    try:
        if args.table_only:
            return write_table(args.output, read_jobs(args.output), {}, Part())
        return run_list(args)
    except (Terminated, KeyboardInterrupt) as error:
        print("ended; the same command continues", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        return report_failure(error)


def run_list(args: argparse.Namespace) -> int:
    """Run the jobs that have no result, and write the table."""
    part = Part.parse(args.part)
    jobs = job_list(
        args.sets,
        shots=args.shots,
        seeds=args.seeds,
        policies=args.policies,
        validation=args.validation,
    )
    own = part.of(jobs)
    absent = absent_data(own)
    if not args.skip_missing:
        check_data(absent, len(own))
    config, weights = model_files(args)
    run = OdinwRun(
        config=config,
        weights=weights or model_config(args).MODEL.WEIGHTS,
        opts=tuple(config_overrides(args)),
        output=args.output,
        keep_files=args.keep_files,
    )
    settings = run.settings
    args.output.mkdir(parents=True, exist_ok=True)
    check_settings(args.output, settings)
    write_jobs(jobs, args.output)
    if not torch.cuda.is_available():
        keep_freed_memory()
    reasons = {job: f"no data: '{path}' does not exist" for job, path in absent.items()}
    for number, job in enumerate(own, 1):
        if job in absent:
            continue
        if read_result(args.output, job) is not None:
            # Those of a process that was killed after it wrote the result.
            remove_checkpoints(job_folder(args.output, job))
            continue
        print(f"{number} of {len(own)}: {job.name}", flush=True)
        if reason := run_unless_busy(run, job):
            print(f"  {reason}", flush=True)
            reasons[job] = reason
    return write_table(args.output, jobs, reasons, part)


def run_unless_busy(run: OdinwRun, job: Job) -> str:
    """Run a job unless another process does; returns why it has no result, or ""."""
    folder = job_folder(run.output, job)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(output_lock(folder))
        except ValueError as busy:
            return f"in progress: {busy}"
        if read_result(run.output, job) is not None:
            return ""
        log = stack.enter_context(log_to_file(folder))
        # pycocotools prints its tables.
        stack.enter_context(print_to_file(log))
        try:
            run_job(run, job)
        except Exception as error:
            # Of the printed lines, which are in the log, too.
            traceback.print_exc(file=sys.stdout)
            message = f"{type(error).__name__}: {error}"
            atomic_write(folder / ERROR_FILE, f"{message}\n")
            return f"failed: {message}"
    return ""


def write_table(output: Path, jobs: list[Job], reasons: dict[Job, str], part: Part) -> int:
    """Write and print the table of all jobs; returns the exit code for those of the part."""
    table = read_table(output, jobs, reasons)
    files = table.write(output)
    print(table.text())
    for file in files:
        print(f"wrote {file}")
    return INCOMPLETE if any(job in table.missing for job in part.of(jobs)) else 0


if __name__ == "__main__":
    sys.exit(main())
