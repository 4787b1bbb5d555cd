#!/usr/bin/env python
r"""Check a list of class names on your own images.

    tools/check_names.py absent --config-file projects/GLIPv2Mini/configs/glipv2_mini.yaml \
        --input photos/ --classes "cat, dog, coffee cup" \
        --opts MODEL.WEIGHTS projects/GLIPv2Mini/glipv2_mini/assets/glipv2_mini.pth
    tools/check_names.py order ... --input photos/ --classes-file names.txt --orders 8
    tools/check_names.py calibrate ... --annotations val.json --images val/ --output thresholds.json

absent: the best score of every name over the images; a name below the threshold in all of them is
probably absent. order: how far the scores change with the order of the names. calibrate: a score
threshold per name from a few images in COCO's format, in which every object of the names is
labelled; for Predictor.predict(thresholds=...) and tools/demo.py --thresholds.

Each command prints a table; --json and --markdown write it to files. The exit code is 0 if every
image was read and predicted, 1 if some were skipped, 2 if the command failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from glipv2_d2.batch_prediction import ImageBatches
from glipv2_d2.class_name_checks import (
    calibrate_thresholds,
    check_absent_names,
    check_order_sensitivity,
    load_labelled_images,
)
from glipv2_d2.command_line import (
    check_minimums,
    check_output_file,
    escape_unprintable_output,
    expand_image_paths,
    parse_class_names,
    read_class_names,
    report_failure,
)
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.evaluation.calibration import MIN_POSITIVES
from glipv2_d2.evaluation.class_reports import ClassReport
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.predictor import Predictor
from glipv2_d2.text.names import normalized_name


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    absent = commands.add_parser("absent", help="the best score of every name over the images")
    order = commands.add_parser("order", help="how far the order of the names changes the scores")
    calibrate = commands.add_parser("calibrate", help="thresholds from labelled images")
    for command in (absent, order):
        _add_name_arguments(command)
    order.add_argument(
        "--orders", type=int, default=5, metavar="N", help="orders (default: %(default)s)"
    )
    order.add_argument("--seed", type=int, default=0, metavar="N", help="of the random orders")
    add = calibrate.add_argument
    add("--annotations", required=True, type=Path, metavar="FILE.json")
    add("--images", required=True, type=Path, metavar="DIR")
    add("--output", required=True, type=Path, metavar="FILE", help="file of the thresholds")
    add("--precision", type=float, metavar="P", help="required precision (default: the best F1)")
    add(
        "--min-positives",
        type=int,
        default=MIN_POSITIVES,
        metavar="N",
        help="boxes that a name needs for a threshold of its own (default: %(default)s)",
    )
    for command in (absent, order, calibrate):
        _add_common_arguments(command)
    return parser


def _add_name_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or quoted patterns such as 'photos/**/*.jpg'",
    )
    names = command.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", metavar="NAMES", help='class names: "cat, coffee cup"')
    names.add_argument("--classes-file", type=Path, metavar="FILE", help="one name per line")
    command.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        metavar="T",
        help="score at which a name counts as present (default: %(default)s)",
    )
    command.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="the same per name, written by calibrate"
    )


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    add("--json", type=Path, metavar="FILE", help="write the report to this file")
    add("--markdown", type=Path, metavar="FILE", help="write the report to this file")
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


def run_calibration(args: argparse.Namespace) -> tuple[ClassReport, list[str]]:
    """The report, and an error message for each skipped image."""
    check_output_file(args.output, "--output")
    annotations_of_image, class_names = load_labelled_images(args.annotations, args.images)
    predictor = Predictor(args.config_file, opts=args.opts)
    with tqdm(total=len(annotations_of_image), unit=" images") as bar:
        batches = ImageBatches(list(annotations_of_image), args.batch_size, bar.update)
        report, thresholds = calibrate_thresholds(
            predictor,
            batches,
            class_names,
            annotations_of_image,
            precision=args.precision,
            min_positives=args.min_positives,
        )
    print(report.text())
    about = {"config": args.config_file, "report": report.to_json()}
    atomic_write(args.output, thresholds.to_json(**about))
    print(f"thresholds written to {args.output}")
    return report, batches.skipped


def run_check(args: argparse.Namespace) -> tuple[ClassReport, list[str]]:
    """The report of ``absent`` or ``order``, and an error message for each skipped image."""
    if args.classes_file is not None:
        names = read_class_names(args.classes_file)
    else:
        names = parse_class_names(args.classes)
    names = list({normalized_name(name): name for name in reversed(names)}.values())[::-1]
    paths = expand_image_paths(args.input)
    thresholds = ScoreThresholds.from_source(args.thresholds or ScoreThresholds({}, args.threshold))
    predictor = Predictor(args.config_file, opts=args.opts)
    with tqdm(total=len(paths), unit=" images") as bar:
        batches = ImageBatches(paths, args.batch_size, bar.update)
        if args.command == "absent":
            report = check_absent_names(predictor, batches, names, thresholds)
        else:
            report = check_order_sensitivity(
                predictor, batches, names, thresholds, num_orders=args.orders, seed=args.seed
            )
    print(report.text())
    return report, batches.skipped


def run(args: argparse.Namespace) -> list[str]:
    """An error message for each skipped image."""
    check_minimums(args, {"batch_size": 1})
    check_output_file(args.json, "--json")
    check_output_file(args.markdown, "--markdown")
    report, skipped = (run_calibration if args.command == "calibrate" else run_check)(args)
    if args.json is not None:
        atomic_write(args.json, dump_json(report.to_json(), indent=1, ensure_ascii=False))
        print(f"report written to {args.json}")
    if args.markdown is not None:
        atomic_write(args.markdown, report.text("github"))
        print(f"report written to {args.markdown}")
    return skipped


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    escape_unprintable_output()
    setup_logger(name="glipv2_d2")
    try:
        skipped = run(args)
    except Exception as error:
        return report_failure(error)
    for reason in skipped:
        print(f"skipped: {reason}")
    return 1 if skipped else 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
