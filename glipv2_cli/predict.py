"""Detect objects by name in images and videos, answer questions, or generate captions.

Examples:
  glipv2 predict photos/ --classes "cat, coffee cup" --output output/photos
  glipv2 predict "photos/**/*.jpg" --classes-file names.txt --save coco yolo
  glipv2 predict street.mp4 --classes "car, bus" --threshold 0.4 --one-name
  glipv2 predict photo.jpg --question "is there a cat in the picture?"
  glipv2 predict "s3://bucket/photos/*.jpg" --classes "cat" --ray auto --actors 8 --save coco
  glipv2 predict val2017/ --ids-from instances_val2017.json --threshold 0 --save coco

Every result is stored in predictions.jsonl in the output folder as it is made: the same command
continues an interrupted run.

exit codes:
  0  every input was read
  1  some inputs were skipped, see the list; or the run was ended by Ctrl-C
  2  the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_model_arguments,
    add_threshold_arguments,
    build_predictor,
    class_names,
    log_to_file,
    model_name,
    names_of_model,
    score_thresholds,
)
from glipv2_cli.progress import ProgressBar
from glipv2_cli.ray_options import add_ray_arguments, check_ray_arguments, ray_actors

if TYPE_CHECKING:
    from rich.console import Console

    from glipv2_d2.batch_prediction import FilePrompts
    from glipv2_d2.inference.export import CocoIds
    from glipv2_d2.inference.run import RunReport

FORMATS = ("coco", "yolo", "voc", "csv", "label-studio")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, quoted patterns, https://..., s3://... (what fsspec opens), "
        "webcam or webcam:N",
    )
    add("--recursive", action="store_true", help="also the subfolders of folders")
    add("--max-frames", type=int, metavar="N", help="of each video and camera (default: all)")
    _add_prompt_arguments(parser.add_argument_group("prompt (one of them)"))
    _add_selection_arguments(parser.add_argument_group("detections"))
    _add_output_arguments(parser.add_argument_group("output"))
    add_ray_arguments(parser)
    add_model_arguments(parser)
    return parser


def _add_prompt_arguments(group: argparse._ArgumentGroup) -> None:
    prompt = group.add_mutually_exclusive_group()
    add = prompt.add_argument
    add(
        "--classes",
        metavar="NAMES",
        help='class names: "cat, coffee cup" (default: those of a fine-tuned model)',
    )
    add("--classes-file", type=Path, metavar="FILE", help="one per line: cat, or cat: 0.4")
    add("--caption", metavar="TEXT", help="a sentence whose noun phrases are detected")
    add("--question", metavar="TEXT", help="a question, answered with the boxes of its phrases")
    add("--describe", action="store_true", help="generate captions")


def _add_selection_arguments(group: argparse._ArgumentGroup) -> None:
    add_threshold_arguments(group)
    add = group.add_argument
    add("--negatives", metavar="NAMES", help='names that compete with --classes: "wolf, fox"')
    add("--one-name", action="store_true", help="of overlapping boxes only the best name")
    add("--no-parts", action="store_true", help="no box inside a better one of its name")
    add(
        "--tiles", type=int, metavar="SIZE", help="detect in tiles of SIZE pixels, for large images"
    )


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=Path,
        default=Path("output/predict"),
        metavar="DIR",
        help="(default: %(default)s)",
    )
    add("--save", nargs="+", choices=FORMATS, default=[], help="formats of the results")
    add(
        "--ids-from",
        type=Path,
        metavar="FILE",
        help="--save coco writes a result list with the image and category ids of this annotation "
        "file; its class names are the default of --classes",
    )
    add("--no-draw", action="store_true", help="write no drawn images and videos")
    add("--overwrite", action="store_true", help="start anew instead of continuing a run")
    add("--batch-size", type=int, default=1, metavar="N", help="images per forward pass")


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    from rich.console import Console

    console = Console()
    report = run(args)
    print_report(report, console)
    return 1 if report.skipped or report.interrupted else 0


def run(args: argparse.Namespace) -> RunReport:
    from glipv2_d2.engine.host_memory import keep_freed_memory
    from glipv2_d2.inference.export import CocoIds
    from glipv2_d2.inference.media import expand_sources
    from glipv2_d2.inference.run import OutputOptions, SourcePrediction, check_ids
    from glipv2_d2.inference.run_on_ray import check_sources, predict_on_ray

    _check_numbers(args)
    check_ray_arguments(args)
    sources = expand_sources(args.inputs, recursive=args.recursive)
    if args.ray is not None:
        check_sources(sources)
    ids = CocoIds.read(args.ids_from) if args.ids_from else None
    prompts = _prompts(args, ids)
    names = None if prompts.classes is None else [str(name) for name in prompts.classes]
    thresholds = score_thresholds(args, names)
    if ids is not None:
        check_ids(ids, sources, names or [])
    keep_freed_memory()

    def prediction() -> SourcePrediction:
        return SourcePrediction(
            prompts,
            thresholds,
            OutputOptions(args.output, args.save, ids, not args.no_draw, args.overwrite),
            model=model_name(args),
            batch_size=args.batch_size,
            max_frames=args.max_frames,
        )

    with log_to_file(args.output) as log, ProgressBar(desc="load the model") as bar:
        if args.ray is None:
            predictor = build_predictor(args)
            order = {source: number for number, source in enumerate(sources)}
            bar.describe("predict", total=len(sources))
            report = prediction().run(
                predictor, sources, lambda source: bar.move_to(order[source] + 1)
            )
        else:
            bar.describe("connect to Ray")
            with ray_actors(args) as (actors, args_of_actors):
                bar.describe("predict", total=len(sources))
                build = functools.partial(build_predictor, args_of_actors, 0)
                report = predict_on_ray(prediction(), actors, build, sources, bar.update)
    report.files.append(log)
    return report


def _check_numbers(args: argparse.Namespace) -> None:
    for option in ("batch_size", "max_frames", "tiles"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; it must be at least 1")
    if args.ids_from is not None and "coco" not in args.save:
        raise ValueError("--ids-from sets the ids of --save coco; add it")


def _prompts(args: argparse.Namespace, ids: CocoIds | None) -> FilePrompts:
    from glipv2_d2.batch_prediction import FilePrompts
    from glipv2_d2.command_line import parse_class_names

    classes = class_names(args)
    other = args.caption or args.question or args.describe
    if classes is None and not other and ids is None:
        classes = names_of_model(args)
    if classes is None and not other:
        if ids is None:
            raise ValueError(
                "what should be predicted? Pass --classes, --classes-file, --caption, --question "
                "or --describe"
            )
        classes = list(ids.category_ids)
    return FilePrompts(
        classes=classes,
        negatives=parse_class_names(args.negatives, "--negatives") if args.negatives else None,
        caption=args.caption,
        question=args.question,
        describe=args.describe,
        one_name_per_box=args.one_name,
        without_parts=args.no_parts,
        tiles=args.tiles,
    )


def print_report(report: RunReport, console: Console) -> None:
    """Print counts per name, the written files, and what was skipped."""
    from rich.text import Text

    from glipv2_d2.command_line import printable

    resumed = f" ({report.num_resumed} of an earlier run)" if report.num_resumed else ""
    lines = [f"{report.num_images} images{resumed}, {report.counts.total()} detections"]
    lines += [f"  {count:6d}  {name}" for name, count in report.counts.most_common(20)]
    if len(report.counts) > 20:
        lines.append(f"  ... and {len(report.counts) - 20} more names")
    lines += report.texts
    lines += [f"wrote {file}" for file in report.files]
    lines += [f"skipped: {reason}" for reason in report.skipped]
    if report.interrupted:
        lines.append("ended by Ctrl-C: the same command continues")
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True, highlight=False)
