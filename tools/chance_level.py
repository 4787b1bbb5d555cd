#!/usr/bin/env python
"""What a detector's AP would be if its names meant nothing.

    python tools/chance_level.py --annotations datasets/drawn/novel.json \
        --results output/two_stage_drawn/inference/mini_drawn_novel/coco_instances_results.json

Evaluates the file that Detectron2's COCOEvaluator writes as it is, and again with every detection
under a wrong name: that of the category one place further in the list, two places further, and so
on. Boxes, masks and scores stay, so the mean of these is the AP of a model that finds things but
cannot tell them apart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from pycocotools.coco import COCO
from tabulate import tabulate
from tqdm import tqdm

from glipv2_d2.evaluation.chance import average_precision, rename


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(args.annotations))
    detections = json.loads(args.results.read_text(encoding="utf-8"))
    category_ids = sorted(truth.getCatIds())
    if len(category_ids) < 2:
        sys.exit(f"{args.annotations} has {len(category_ids)} category: no name can be wrong")
    if unknown := {d["category_id"] for d in detections} - set(category_ids):
        sys.exit(
            f"{args.results} has the categories {sorted(unknown)[:5]}, which {args.annotations} "
            "lacks: is it the result of another data set?"
        )
    shifts = range(1, min(len(category_ids) - 1, args.shifts) + 1)
    has_masks = all("segmentation" in part for part in (*detections, *truth.anns.values()))
    rows = []
    for task in ("bbox", "segm") if has_masks else ("bbox",):
        own = average_precision(truth, detections, task)
        wrong = [
            average_precision(truth, rename(detections, category_ids, shift), task)
            for shift in tqdm(shifts, desc=f"{task}, wrong names", unit="list")
        ]
        rows.append((task, *own, *(mean(values) for values in zip(*wrong, strict=True))))
    print(
        tabulate(
            rows,
            ["task", "AP", "AP50", "AP, wrong names", "AP50, wrong names"],
            tablefmt="pipe",
            floatfmt=".2f",
        )
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO's format")
    parser.add_argument("--results", type=Path, required=True, help="coco_instances_results.json")
    parser.add_argument(
        "--shifts",
        type=int,
        default=10,
        help="wrong lists of names, at most one less than there are names (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
