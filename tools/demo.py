#!/usr/bin/env python
r"""Detect objects by name in images: annotated images, a result file and a table.

    tools/demo.py --config-file projects/GLIPv2Mini/configs/glipv2_mini.yaml --input photos/ \
        --classes "cat, dog, coffee cup" --output output/photos --json output/photos.json

A model with an answer head answers a question (--question "what is on the table?"); one with a
caption head generates captions (--describe). The text is written below the image, each phrase in
the colour of its boxes.

The result file is a COCO result list whose rows also have file_name and category_name; image_id is
the index of the input and category_id the index of the class name, both from 0. Models with masks
add a segmentation (RLE). With --question and --describe the file has one row per image, with the
text and its detections.

Images are turned upright by their EXIF orientation, as boxes are. The exit code is 0 if every image
was read, predicted and written, 1 if some were not (each is listed with the reason, the others are
finished), 2 if the command failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from rich.console import Console
from rich.text import Text

from glipv2_d2.batch_prediction import FilePredictions, FilePrompts, predict_files, write_json
from glipv2_d2.command_line import (
    check_output_file,
    check_output_folder,
    escape_unprintable_output,
    expand_image_paths,
    parse_class_names,
    printable,
    read_class_names,
    report_failure,
)
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.predictor import Predictor


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or quoted patterns such as 'photos/**/*.jpg'",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--classes", metavar="NAMES", help='class names: "cat, coffee cup"')
    prompt.add_argument("--classes-file", type=Path, metavar="FILE", help="the same, one per line")
    prompt.add_argument(
        "--caption", metavar="TEXT", help="a sentence whose noun phrases are detected"
    )
    prompt.add_argument("--question", metavar="TEXT", help="a question (needs an answer head)")
    prompt.add_argument(
        "--describe", action="store_true", help="generate captions (needs a caption head)"
    )
    add(
        "--negatives",
        metavar="NAMES",
        help='names that compete with --classes and are not returned: "wolf, fox" to separate '
        "them from dogs",
    )
    add(
        "--one-name-per-box",
        action="store_true",
        help="keep only the best of overlapping boxes of different names, for --classes and "
        "--caption",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder of annotated images")
    add("--json", type=Path, metavar="FILE", help="write the detections to this file")
    add(
        "--threshold",
        type=float,
        default=0.3,
        metavar="T",
        help="minimum score, 0 to 1 (default: %(default)s). Detections below the config's "
        "MODEL.GROUNDING.SCORE_THRESH are dropped before",
    )
    add(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="minimum score per name instead of --threshold, written by check_names.py calibrate",
    )
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images per forward pass (default: %(default)s)",
    )
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides, last on the command line: --opts MODEL.WEIGHTS my.pth",
    )
    return parser


def run(args: argparse.Namespace, console: Console) -> FilePredictions:
    if not 0 <= args.threshold <= 1 or args.batch_size < 1:
        raise ValueError(
            f"--threshold is {args.threshold} (0 to 1), --batch-size {args.batch_size} (1 or more)"
        )
    classes = parse_class_names(args.classes) if args.classes is not None else None
    if args.classes_file is not None:
        classes = read_class_names(args.classes_file)
    prompts = FilePrompts(
        classes=classes,
        negatives=parse_class_names(args.negatives, "--negatives") if args.negatives else None,
        caption=args.caption,
        question=args.question,
        describe=args.describe,
        one_name_per_box=args.one_name_per_box,
    )
    threshold = ScoreThresholds.from_source(args.thresholds) if args.thresholds else args.threshold
    paths = expand_image_paths(args.input)
    check_output_folder(args.output, "--output")
    check_output_file(args.json, "--json")
    results = predict_files(
        Predictor(args.config_file, opts=args.opts),
        paths,
        prompts,
        output_dir=args.output,
        console=console,
        threshold=threshold,
        batch_size=args.batch_size,
    )
    if args.json is not None:
        write_json(results.rows, args.json)
    return results


def print_summary(results: FilePredictions, args: argparse.Namespace, console: Console) -> None:
    """Print which files were written and which images were skipped."""
    threshold = args.thresholds or f"{args.threshold:g}"
    lines = [
        f"{len(results.annotated_images)} annotated images in {printable(args.output)}, "
        f"{results.num_detections} detections of at least {threshold}"
    ]
    if args.json is not None:
        lines.append(f"detections written to {printable(args.json)}")
    lines += [f"skipped: {reason}" for reason in results.skipped]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    escape_unprintable_output()
    setup_logger(name="glipv2_d2")
    console = Console()
    try:
        results = run(args, console)
    except Exception as error:
        return report_failure(error)
    print_summary(results, args, console)
    return 1 if results.skipped else 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
