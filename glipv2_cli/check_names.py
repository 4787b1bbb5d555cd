"""Check a list of class names on your own images.

Examples:
  glipv2 check-names absent --input photos/ --classes "cat, dog, coffee cup"
  glipv2 check-names order --input photos/ --classes-file names.txt --orders 8
  glipv2 check-names calibrate --annotations val.json --images val/ --output thresholds.json

absent: the best score of every name over the images; a name below the threshold in all of them is
probably absent. order: how far the scores change with the order of the names. calibrate: a score
threshold per name from a few images in COCO's format, in which every object of the names is
labelled; for Predictor.predict(thresholds=...) and --thresholds of glipv2 predict and label.

Each command prints a table; --json and --markdown write it to files.

exit codes:
  0  every image was read and predicted
  1  some images were skipped, see the list
  2  the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_log_argument,
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

if TYPE_CHECKING:
    from glipv2_d2.evaluation.class_reports import ClassReport


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
    add("--min-precision", type=float, metavar="P", help="required precision (default: best F1)")
    add(
        "--min-positives",
        type=int,
        metavar="N",
        help="boxes that a name needs for a threshold of its own (default: 10)",
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
    names = command.add_mutually_exclusive_group()
    names.add_argument(
        "--classes",
        metavar="NAMES",
        help='class names: "cat, coffee cup" (default: those of a fine-tuned model)',
    )
    names.add_argument(
        "--classes-file", type=Path, metavar="FILE", help="one per line: cat, or cat: 0.4"
    )
    add_threshold_arguments(command.add_argument_group("score at which a name counts as present"))


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--json", type=Path, metavar="FILE", help="write the report to this file")
    add("--markdown", type=Path, metavar="FILE", help="write the report to this file")
    add("--batch-size", type=int, default=1, metavar="N", help="images per forward pass")
    add_log_argument(command, "check-names")
    add_model_arguments(command)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    from glipv2_d2.engine.host_memory import keep_freed_memory

    keep_freed_memory()
    with log_to_file(args.log, option="--log"):
        skipped = run(args)
    for reason in skipped:
        print(f"skipped: {reason}")
    return 1 if skipped else 0


def run(args: argparse.Namespace) -> list[str]:
    """An error message for each skipped image."""
    from glipv2_d2.command_line import check_minimums, check_output_file
    from glipv2_d2.file_writing import atomic_write, dump_json

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


def run_calibration(args: argparse.Namespace) -> tuple[ClassReport, list[str]]:
    """The report, and an error message for each skipped image."""
    from glipv2_d2.batch_prediction import ImageBatches
    from glipv2_d2.class_name_checks import calibrate_thresholds, load_labelled_images
    from glipv2_d2.command_line import check_output_file
    from glipv2_d2.evaluation.calibration import MIN_POSITIVES
    from glipv2_d2.file_writing import atomic_write

    check_output_file(args.output, "--output")
    annotations_of_image, names = load_labelled_images(args.annotations, args.images)
    predictor = build_predictor(args)
    with ProgressBar(total=len(annotations_of_image), unit="image") as bar:
        batches = ImageBatches(list(annotations_of_image), args.batch_size, bar.update)
        report, thresholds = calibrate_thresholds(
            predictor,
            batches,
            names,
            annotations_of_image,
            precision=args.min_precision,
            min_positives=MIN_POSITIVES if args.min_positives is None else args.min_positives,
        )
    print(report.text())
    about = {"model": model_name(args), "report": report.to_json()}
    atomic_write(args.output, thresholds.to_json(**about))
    print(f"thresholds written to {args.output}")
    return report, batches.skipped


def run_check(args: argparse.Namespace) -> tuple[ClassReport, list[str]]:
    """The report of ``absent`` or ``order``, and an error message for each skipped image."""
    from glipv2_d2.batch_prediction import ImageBatches
    from glipv2_d2.class_name_checks import check_absent_names, check_order_sensitivity
    from glipv2_d2.command_line import expand_image_paths
    from glipv2_d2.text.names import normalized_name

    names = class_names(args) or names_of_model(args)
    if names is None:
        raise ValueError("which names should be checked? Pass --classes or --classes-file")
    names = list({normalized_name(name): name for name in reversed(names)}.values())[::-1]
    paths = expand_image_paths(args.input)
    thresholds = score_thresholds(args, names)
    predictor = build_predictor(args)
    with ProgressBar(total=len(paths), unit="image") as bar:
        batches = ImageBatches(paths, args.batch_size, bar.update)
        if args.command == "absent":
            report = check_absent_names(predictor, batches, names, thresholds)
        else:
            report = check_order_sensitivity(
                predictor, batches, names, thresholds, num_orders=args.orders, seed=args.seed
            )
    print(report.text())
    return report, batches.skipped
