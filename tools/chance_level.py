#!/usr/bin/env python
"""Metrics that a model reaches without recognising classes or images.

    python tools/chance_level.py --annotations datasets/drawn/novel.json \
        --results output/two_stage_drawn/inference/drawn_novel/coco_instances_results.json

Evaluates a result file of Detectron2's COCOEvaluator, and again with wrong class names: every
category is replaced by the next one in the list, the one after that, and so on. Boxes, masks and
scores are unchanged, so the mean of these runs is the AP of a model that localizes objects but
cannot classify them.

    python tools/chance_level.py --dataset mini_stamps_seen_captioning_200 \
        --results output/mini/inference/mini_stamps_seen_captioning_200/captions_results.json

The same for captions: every image gets the caption generated for the next image, the one after
that, and so on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from glipv2_d2.data.coco_truth import coco_api, read_truth
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.evaluation.permutation_baseline import (
    permuted_captions_baseline,
    permuted_classes_baseline,
)
from glipv2_d2.projects import load_projects
from glipv2_d2.structures import fields


def progress(shifts: range, description: str) -> Iterable[int]:
    return tqdm(shifts, desc=description, unit="list")


def caption_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    references = {
        record[fields.IMAGE_ID]: record[fields.TARGET_CAPTIONS]
        for record in load_dataset(args.dataset, filter_empty=False)
    }
    captions = {x["image_id"]: x["caption"] for x in json.loads(args.results.read_text("utf-8"))}
    if captions.keys() != references.keys():
        sys.exit(
            f"{args.results} has {len(captions)} images, dataset {args.dataset!r} "
            f"{len(references)}, and they differ: is it the result of another dataset?"
        )
    if len(captions) < 2:
        sys.exit(f"{args.dataset!r} has {len(captions)} image; at least two are needed")
    return permuted_captions_baseline(
        captions, references, max_shifts=args.shifts, progress=progress
    )


def detection_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    ground_truth = coco_api(read_truth(str(args.annotations)).to_coco())
    detections = json.loads(args.results.read_text(encoding="utf-8"))
    category_ids = set(ground_truth.getCatIds())
    if len(category_ids) < 2:
        sys.exit(f"{args.annotations} has {len(category_ids)} category; at least two are needed")
    if unknown := {d["category_id"] for d in detections} - category_ids:
        sys.exit(
            f"{args.results} has the categories {sorted(unknown)[:5]}, which are not in "
            f"{args.annotations}: is it the result of another dataset?"
        )
    return permuted_classes_baseline(
        ground_truth, detections, max_shifts=args.shifts, progress=progress
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ground_truth = parser.add_mutually_exclusive_group(required=True)
    ground_truth.add_argument("--annotations", type=Path, help="of detections, in COCO's format")
    ground_truth.add_argument("--dataset", help="of captions, a registered name")
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        help="coco_instances_results.json or captions_results.json",
    )
    parser.add_argument(
        "--shifts",
        type=int,
        default=10,
        help="number of permutations (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    load_projects()
    rows = caption_rows(args) if args.dataset else detection_rows(args)
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".2f"))


if __name__ == "__main__":
    main()
