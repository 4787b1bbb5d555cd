r"""Label many images: boxes of class names, or of the noun phrases of captions.

Examples:
  glipv2 label --images photos/ --classes-file names.txt --output output/labels
  glipv2 label --images photos/ --model output/mine --output output/labels
  glipv2 label --images "s3://bucket/photos/**/*.jpg" --classes "cat, dog" --threshold "cat=0.4" \
      --output output/labels --format coco yolo --processes 4
  glipv2 label --images train2017/ --captions captions_train2017.json --output output/pseudo_coco
  glipv2 label --captions "cc3m-{00000..00331}.tar" --output output/pseudo_cc3m
  glipv2 label --images /shared/photos/ --classes-file names.txt --output output/labels --ray auto \
      --actors 8

A line of the file of class names is "cat", or "cat: 0.4" with the minimum score of the name.
Captions are COCO's (.json), lines of {"image": ..., "caption": ...} (.jsonl), or WebDataset shards
(.tar), which contain the images.

The work is divided into shards. The same command continues an interrupted run, also with another
number of processes. Several machines: run the command on each with --part 1/8, --part 2/8, ... and
then without --part, which labels what is missing and merges all. If the machines share no folder,
copy their output folders into one before. Every machine needs the same --images. With --ray,
this machine writes all files.

exit codes:
  0    every image was labelled; with --captions: some captions have boxes
  1    some images were left out, see left_out.jsonl; with --captions: no caption has boxes
  2    the command failed: the last line has the reason
  130  ended by Ctrl-C: the same command continues
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_model_arguments,
    add_threshold_arguments,
    build_predictor,
    class_names,
    log_to_file,
    model_config,
    model_name,
    names_of_model,
    score_thresholds,
)
from glipv2_cli.progress import ProgressBar
from glipv2_cli.ray_options import add_ray_arguments, check_ray_arguments, ray_actors

if TYPE_CHECKING:
    from glipv2_d2.engine.pseudo_label.label_shards import LabellingReport
    from glipv2_d2.engine.shards import RunShards
    from glipv2_d2.inference.labelling import LabelReport

FORMATS = ("coco", "yolo", "voc", "csv", "label-studio", "grounding")
# Captions often come with their images in tar files, of about a thousand.
SHARD_SIZE = {"names": 50, "captions": 1000}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="INPUT",
        help="images, folders, quoted patterns, https://..., s3://... (what fsspec opens); "
        "with --captions: the folder of their images",
    )
    images.add_argument("--recursive", action="store_true", help="also the subfolders of folders")
    group = parser.add_argument_group("labels (one of the first three)")
    names = group.add_mutually_exclusive_group()
    names.add_argument(
        "--classes",
        metavar="NAMES",
        help='class names: "cat, coffee cup" (default: those of a fine-tuned model)',
    )
    names.add_argument(
        "--classes-file", type=Path, metavar="FILE", help="one per line: cat, or cat: 0.4"
    )
    names.add_argument("--captions", metavar="FILE", help=".json, .jsonl, or .tar with braces")
    group.add_argument("--negatives", metavar="NAMES", help="names that compete with the classes")
    group.add_argument(
        "--one-name", action="store_true", help="of overlapping boxes only the best name"
    )
    group.add_argument(
        "--no-parts", action="store_true", help="no box inside a better one of its name"
    )
    group.add_argument("--tiles", type=int, metavar="SIZE", help="detect in tiles of SIZE pixels")
    add_threshold_arguments(group)
    _add_output_arguments(parser.add_argument_group("output"))
    _add_run_arguments(parser.add_argument_group("run"))
    add_ray_arguments(parser)
    add_model_arguments(parser)
    return parser


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="output folder")
    add(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=None,
        help="of the labels of class names (default: coco); a later run may write others",
    )


def _add_run_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--processes", type=int, default=1, metavar="N", help="each with its own model and GPU")
    add("--part", default="1/1", metavar="K/N", help="of the work of N machines the K-th part")
    add(
        "--shard-size",
        type=int,
        metavar="N",
        help="images per shard, which is written when complete: an interrupted process loses its "
        f"unfinished one (default: {SHARD_SIZE['names']}; captions: {SHARD_SIZE['captions']})",
    )
    add("--batch-size", type=int, default=1, metavar="N", help="images per forward pass")


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    _check(args)
    try:
        with _shard_runner(args) as (args, run):
            return _label_names(args, run) if args.captions is None else _label_captions(args, run)
    except KeyboardInterrupt:
        print(f"the shards in {args.output} are kept: the same command continues")
        raise


def _check(args: argparse.Namespace) -> None:
    from glipv2_d2.command_line import check_minimums

    minimums = ("processes", "shard_size", "batch_size", "tiles")
    check_minimums(args, dict.fromkeys(minimums, 1))
    check_ray_arguments(args)
    if args.captions is None:
        if not args.images:
            raise ValueError("--images is missing: pass files, folders, patterns or addresses")
        return
    given = {
        "--format": args.format,
        "--thresholds": args.thresholds,
        "--negatives": args.negatives,
        "--one-name": args.one_name,
        "--no-parts": args.no_parts,
        "--tiles": args.tiles,
        "--recursive": args.recursive,
    }
    if wrong := [option for option, value in given.items() if value]:
        raise ValueError(f"{', '.join(wrong)}: only with --classes or --classes-file")
    if len(args.images) > 1:
        raise ValueError("--captions needs one folder of --images")


@contextlib.contextmanager
def _shard_runner(args: argparse.Namespace) -> Iterator[tuple[argparse.Namespace, RunShards]]:
    """What completes shards, and the arguments for it."""
    from glipv2_d2.engine.shards import run_in_processes

    if args.ray is None:
        yield args, functools.partial(run_in_processes, num_processes=args.processes)
        return
    with ray_actors(args) as (actors, args_of_actors):
        yield args_of_actors, actors.run_shards


def _label_names(args: argparse.Namespace, run: RunShards) -> int:
    from glipv2_d2.batch_prediction import FilePrompts
    from glipv2_d2.command_line import parse_class_names
    from glipv2_d2.engine.host_memory import keep_freed_memory
    from glipv2_d2.engine.shards import Part
    from glipv2_d2.images import IMAGE_SUFFIXES
    from glipv2_d2.inference.labelling import ImageLabelling, label_images
    from glipv2_d2.inference.media import expand_sources

    keep_freed_memory()
    negatives = parse_class_names(args.negatives, "--negatives") if args.negatives else None
    classes = class_names(args) or names_of_model(args)
    if classes is None:
        raise ValueError(
            "what should be labelled? Pass --classes, --classes-file or --captions; only a "
            "fine-tuned model has class names of its own"
        )
    task = ImageLabelling(
        build_predictor=functools.partial(build_predictor, args),
        model=model_name(args),
        images=expand_sources(args.images, recursive=args.recursive, suffixes=IMAGE_SUFFIXES),
        prompts=FilePrompts(
            classes,
            negatives=negatives,
            one_name_per_box=args.one_name,
            without_parts=args.no_parts,
            tiles=args.tiles,
        ),
        thresholds=score_thresholds(args, classes),
        output=args.output,
        shard_size=args.shard_size or SHARD_SIZE["names"],
        batch_size=args.batch_size,
    )
    part = Part.parse(args.part)
    with log_to_file(args.output) as log:
        report = label_images(
            task,
            args.format or ["coco"],
            part=part,
            run=run,
            progress=ProgressBar,
        )
    print(names_text(report, args.part))
    print(f"wrote {log}")
    return 1 if report.left_out else 0


def names_text(report: LabelReport, part: str) -> str:
    """Counts per name, what was left out, the written files, and what is missing."""
    from glipv2_d2.command_line import printable

    lines = [f"{report.num_images} images, {report.num_boxes.total()} boxes"]
    lines += [f"  {count:6d}  {name}" for name, count in report.num_boxes.most_common(20)]
    if len(report.num_boxes) > 20:
        lines.append(f"  ... and {len(report.num_boxes) - 20} more names")
    lines += [f"left out: {printable(item['reason'])}" for item in report.left_out[:5]]
    if len(report.left_out) > 5:
        lines.append(f"left out: {len(report.left_out) - 5} more")
    lines += [f"wrote {file}" for file in report.files]
    if not report.files:
        done = report.num_shards - report.num_open_shards
        lines.append(part_text(part, done, report.num_shards))
    return "\n".join(lines)


def part_text(part: str, num_done: int, num_shards: int) -> str:
    return (
        f"part {part} is complete; the folder has {num_done} of {num_shards} shards. When it has "
        "those of all parts, the same command without --part merges them"
    )


def _label_captions(args: argparse.Namespace, run: RunShards) -> int:
    import os

    from glipv2_d2.command_line import parse_thresholds
    from glipv2_d2.data.readers.captions import MIN_SCORE
    from glipv2_d2.engine.pseudo_label.label_shards import LabellingTask, label_captions
    from glipv2_d2.engine.shards import Part

    # The tokenizer runs inside loader processes that are forked after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    threshold, per_name = parse_thresholds(args.threshold)
    if per_name:
        raise ValueError("--captions has no class names: pass one --threshold for all phrases")
    if args.ray is not None:
        # Loader processes would be started for each batch of an actor.
        opts = [*args.opts, "DATALOADER.NUM_WORKERS", "0"]
        args = argparse.Namespace(**{**vars(args), "opts": opts})
    task = LabellingTask(
        cfg=model_config(args),
        captions=args.captions,
        image_root=args.images[0] if args.images else "",
        output=args.output,
        # Training uses scores above it only.
        threshold=MIN_SCORE if threshold is None else threshold,
        shard_size=args.shard_size or SHARD_SIZE["captions"],
        batch_size=args.batch_size,
    )
    part = Part.parse(args.part)
    with log_to_file(args.output) as log:
        report = label_captions(task, part=part, run=run, progress=ProgressBar)
    print(captions_text(report, args.part))
    print(f"wrote {log}")
    return 0 if report.num_records else 1


def captions_text(report: LabellingReport, part: str) -> str:
    """Counts, skipped captions, output files, and a config to train on them."""
    import yaml

    lines = [
        f"{report.num_records} of {report.num_pairs} captions have boxes, {report.num_boxes} in all"
    ]
    lines += [
        f"skipped: {count} {why}, first: {report.left_out.examples[why][0]}"
        for why, count in report.left_out.counts.most_common()
    ]
    if not report.dataset:
        done = report.num_shards - report.num_open_shards
        return "\n".join([*lines, part_text(part, done, report.num_shards)])
    lines.append(f"all skipped captions: {report.left_out_file}")
    entry = {"name": "pseudo_train", **report.dataset}
    config = {"DATASETS": {"CUSTOM": [entry], "TRAIN": "('pseudo_train',)"}}
    lines += ["to train on it:", yaml.safe_dump(config, sort_keys=False, width=1000)]
    return "\n".join(lines)
