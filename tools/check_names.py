#!/usr/bin/env python
r"""Can the names be trusted? Three questions about a list of names, asked of your own pictures.

    tools/check_names.py absent --config-file configs/mini/glipv2_mini.yaml --input photos/ \
        --classes "cat, dog, coffee cup" --opts MODEL.WEIGHTS glipv2_d2/assets/glipv2_mini.pth
    tools/check_names.py order ... --input photos/ --classes-file names.txt --orders 8
    tools/check_names.py calibrate ... --annotations val.json --images val/ --output thresholds.json

absent: the best score of every name over the pictures; a name that stays below the threshold
everywhere is not there, as far as the model can tell. order: how far the scores move when the same
names are asked in other orders. calibrate: a threshold for every name from a few labelled pictures
in COCO's format, all of whose things are labelled; for Predictor.predict(thresholds=...) and
tools/demo.py --thresholds.

Each prints a table; --json and --markdown write it to files. Exit code: 0 all pictures were read,
1 some were skipped, 2 the command could not be carried out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo import expand_inputs, parse_names, read_names
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from glipv2_d2.checkpoint import atomic_open
from glipv2_d2.data.readers.coco import read_coco
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.evaluation.calibration import MIN_POSITIVES, calibrate
from glipv2_d2.evaluation.matching import MatchedDetections, match_detections
from glipv2_d2.evaluation.name_reports import (
    NameReport,
    absent_report,
    calibration_report,
    order_report,
)
from glipv2_d2.evaluation.name_scores import order_sensitivity, summarize_names
from glipv2_d2.evaluation.thresholds import NameThresholds
from glipv2_d2.images import read_image
from glipv2_d2.predictor import Predictor

LABELLED = "labelled pictures"
"""The name under which those of a calibration are known to Detectron2."""


class Pictures:
    """Files that are read a few at a time; those that cannot be are named."""

    def __init__(self, paths: Sequence[Path], batch_size: int) -> None:
        self.paths = list(paths)
        self.batch_size = batch_size
        self.read: list[Path] = []
        self.skipped: list[str] = []

    def batches(self) -> Iterator[dict[Path, np.ndarray]]:
        """(H, W, 3) RGB arrays by their files."""
        with tqdm(total=len(self.paths), unit=" pictures") as bar:
            for start in range(0, len(self.paths), self.batch_size):
                images = {}
                for path in self.paths[start : start + self.batch_size]:
                    try:
                        images[path] = read_image(path)
                    except (FileNotFoundError, ValueError) as error:
                        self.skipped.append(str(error))
                self.read += images
                if images:
                    yield images
                bar.update(min(self.batch_size, len(self.paths) - start))
        if not self.read:
            raise ValueError(f"none of the {len(self.paths)} pictures could be read")


def check_absent(
    predictor: Predictor, pictures: Pictures, names: list[str], thresholds: NameThresholds
) -> NameReport:
    scores = np.concatenate(
        [
            predictor.name_scores(images.values(), classes=names, channel_order="RGB")
            for images in pictures.batches()
        ]
    )
    least = thresholds.of_names(names).numpy()
    summaries = summarize_names(names, list(map(str, pictures.read)), scores, least)
    return absent_report(summaries, dict(zip(names, least.tolist(), strict=True)), len(scores))


def check_order(
    predictor: Predictor,
    pictures: Pictures,
    names: list[str],
    thresholds: NameThresholds,
    *,
    num_orders: int,
    seed: int,
) -> NameReport:
    """Ask the caller's order and random ones."""
    if len(names) < 2 or num_orders < 2:
        raise ValueError(
            f"{len(names)} names in {num_orders} orders: there is nothing to compare; give at "
            "least two of both"
        )
    rng = random.Random(seed)
    given = list(range(len(names)))
    orders = [given, *(rng.sample(given, len(names)) for _ in range(num_orders - 1))]
    parts = []
    for images in pictures.batches():
        scores = np.empty((len(orders), len(images), len(names)), dtype=np.float32)
        for of_order, order in zip(scores, orders, strict=True):
            asked = [names[i] for i in order]
            of_order[:, order] = predictor.name_scores(
                images.values(), classes=asked, channel_order="RGB"
            )
        parts.append(scores)
    found = order_sensitivity(
        names, np.concatenate(parts, axis=1), thresholds.of_names(names).numpy()
    )
    return order_report(
        found,
        num_images=len(pictures.read),
        num_orders=len(orders),
        num_averaged=predictor.cfg.MODEL.PROMPT.NUM_ORDERS,
    )


def check_thresholds(
    predictor: Predictor,
    pictures: Pictures,
    names: list[str],
    annotations_of: dict[Path, list[dict[str, Any]]],
    *,
    precision: float | None,
    min_positives: int,
) -> tuple[NameReport, NameThresholds]:
    """The report and what it proposes."""
    parts = []
    for images in pictures.batches():
        predictions = predictor.predict(
            images.values(), classes=names, channel_order="RGB", batch_size=len(images)
        )
        for path, prediction in zip(images, predictions, strict=True):
            instances = prediction.instances
            parts.append(
                match_detections(
                    instances.pred_boxes.tensor.numpy(),
                    instances.scores.numpy(),
                    instances.pred_classes.numpy(),
                    *truth_of(annotations_of[path]),
                    num_classes=len(names),
                )
            )
    wanted = "the best F1" if precision is None else f"a precision of {precision:g}"
    found = calibrate(
        MatchedDetections.cat(parts), names, precision=precision, min_positives=min_positives
    )
    thresholds = NameThresholds(
        {proposal.name: proposal.threshold for proposal in found.classes},
        found.overall.threshold,
    )
    return calibration_report(found, num_images=len(pictures.read), wanted=wanted), thresholds


def truth_of(annotations: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (G, 4) XYXY, classes (G,) and crowd flags (G,) of an image."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    is_crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    return boxes, classes, is_crowd


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    absent = commands.add_parser("absent", help="the best score of every name over a folder")
    order = commands.add_parser("order", help="how far the order of the names moves the scores")
    thresholds = commands.add_parser("calibrate", help="thresholds from labelled pictures")
    for command in (absent, order):
        command.add_argument(
            "--input",
            required=True,
            nargs="+",
            metavar="PATH",
            help="pictures, folders of pictures, or quoted patterns such as 'photos/**/*.jpg'",
        )
        names = command.add_mutually_exclusive_group(required=True)
        names.add_argument("--classes", metavar="NAMES", help='the names: "cat, coffee cup"')
        names.add_argument("--classes-file", type=Path, metavar="FILE", help="one name per line")
        command.add_argument(
            "--threshold",
            type=float,
            default=0.3,
            metavar="T",
            help="score at which a name counts as seen (default: %(default)s)",
        )
        command.add_argument(
            "--thresholds", type=Path, metavar="FILE", help="the same by name, of calibrate"
        )
    order.add_argument(
        "--orders", type=int, default=5, metavar="N", help="to compare (default: %(default)s)"
    )
    order.add_argument("--seed", type=int, default=0, metavar="N", help="of the random orders")
    thresholds.add_argument("--annotations", required=True, type=Path, metavar="FILE.json")
    thresholds.add_argument("--images", required=True, type=Path, metavar="DIR")
    thresholds.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="where the thresholds go"
    )
    thresholds.add_argument(
        "--precision",
        type=float,
        metavar="P",
        help="the share of right boxes that is wanted (default: the best F1)",
    )
    thresholds.add_argument(
        "--min-positives",
        type=int,
        default=MIN_POSITIVES,
        metavar="N",
        help="boxes that a name needs for a threshold of its own (default: %(default)s)",
    )
    for command in (absent, order, thresholds):
        _add_common_arguments(command)
    return parser


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    command.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there")
    command.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="pictures per forward pass (default: %(default)s)",
    )
    command.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, last on the line: --opts MODEL.WEIGHTS my.pth",
    )


def names_of(args: argparse.Namespace) -> list[str]:
    """Each name once, in the order of the command line."""
    names = read_names(args.classes_file) if args.classes_file else parse_names(args.classes)
    return list(dict.fromkeys(names))


def run(args: argparse.Namespace) -> list[str]:
    """Do the work and say what was written.

    Returns:
        The reason for each picture that was skipped.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; give 1 or more")
    if args.command == "calibrate":
        records = read_coco(str(args.annotations), str(args.images), LABELLED)
        annotations_of = {Path(record["file_name"]): record["annotations"] for record in records}
        pictures = Pictures(list(annotations_of), args.batch_size)
        report, thresholds = check_thresholds(
            Predictor(args.config_file, opts=args.opts),
            pictures,
            MetadataCatalog.get(LABELLED).thing_classes,
            annotations_of,
            precision=args.precision,
            min_positives=args.min_positives,
        )
    else:
        names = names_of(args)
        pictures = Pictures(expand_inputs(args.input), args.batch_size)
        least = NameThresholds.of(args.thresholds or NameThresholds({}, args.threshold))
        predictor = Predictor(args.config_file, opts=args.opts)
        if args.command == "absent":
            report = check_absent(predictor, pictures, names, least)
        else:
            report = check_order(
                predictor, pictures, names, least, num_orders=args.orders, seed=args.seed
            )
    print(report.text())
    if args.command == "calibrate":
        about = {"config": args.config_file, "report": report.to_json()}
        write(args.output, thresholds.to_json(**about))
        print(f"thresholds written to {args.output}")
    if args.json is not None:
        write(args.json, json.dumps(report.to_json(), indent=1, ensure_ascii=False))
        print(f"report written to {args.json}")
    if args.markdown is not None:
        write(args.markdown, report.text("github"))
        print(f"report written to {args.markdown}")
    return pictures.skipped


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(content.encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    setup_logger(name="glipv2_d2")
    try:
        skipped = run(args)
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason in skipped:
        print(f"skipped: {reason}")
    return 1 if skipped else 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
