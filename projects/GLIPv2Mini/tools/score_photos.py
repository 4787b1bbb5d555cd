#!/usr/bin/env python
"""Score a model on the dev photos: boxes, questions, phrases and captions, each with a baseline.

    python projects/GLIPv2Mini/datasets/prepare_photos.py
    python projects/GLIPv2Mini/tools/score_photos.py CONFIG WEIGHTS

The metrics and their baselines are defined in glipv2_mini/photo_metrics.py. The photos are for
evaluation, never for training.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.predictor import Predictor
from glipv2_mini.photo_metrics import photo_metrics
from glipv2_mini.photo_predictions import load_photos, predict_photos


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="the model's config")
    parser.add_argument("weights", metavar="WEIGHTS", help="its checkpoint")
    parser.add_argument(
        "--data",
        type=Path,
        default=root / "mini_photos",
        metavar="DIR",
        help="what prepare_photos.py has written (default: %(default)s)",
    )
    parser.add_argument("--no-text", action="store_true", help="only the boxes of class names")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write metrics and predictions as JSON"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides, last on the command line",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        photos = load_photos(args.data)
        predictor = Predictor(args.config, args.weights, opts=args.opts)
        predictions = predict_photos(predictor, photos, args.data / "images", text=not args.no_text)
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    metrics = photo_metrics(photos, predictions)
    for entry in predictions.captions:
        print(f"{entry.photo}: {entry.caption}")
    rows = [
        [metric.name, metric.value, metric.baseline, metric.baseline_name, metric.count]
        for metric in metrics
    ]
    headers = ["metric", "%", "baseline", "the baseline is", "number"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".1f"))
    if args.output is not None:
        content = {"metrics": [asdict(metric) for metric in metrics], **asdict(predictions)}
        atomic_write(args.output, dump_json(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
