#!/usr/bin/env python
"""What a model's numbers would be if it did not see what it names.

    python tools/chance_level.py --annotations datasets/drawn/novel.json \
        --results output/two_stage_drawn/inference/mini_drawn_novel/coco_instances_results.json

Evaluates the file that Detectron2's COCOEvaluator writes as it is, and again with every detection
under a wrong name: that of the category one place further in the list, two places further, and so
on. Boxes, masks and scores stay, so the mean of these is the AP of a model that finds things but
cannot tell them apart.

    python tools/chance_level.py --dataset mini_stamps_seen_captioning_200 \
        --results output/mini_joint/inference/mini_stamps_seen_captioning_200/captions_results.json

Likewise for descriptions: every image gets those that were made for the image one place further,
and so on, which are as well written and tell of another picture.
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
from typing import Any

from pycocotools.coco import COCO
from tabulate import tabulate
from tqdm import tqdm

from glipv2_d2.data.build import load_dataset
from glipv2_d2.evaluation.captions import score_captions
from glipv2_d2.evaluation.chance import average_precision, rename
from glipv2_d2.structures import fields


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rows = caption_rows(args) if args.dataset else detection_rows(args)
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".2f"))


def caption_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every metric of the captions as they are, and of those of other images."""
    references_of = {
        record[fields.IMAGE_ID]: record[fields.TARGET_CAPTIONS]
        for record in load_dataset(args.dataset, filter_empty=False)
    }
    said = {x["image_id"]: x["caption"] for x in json.loads(args.results.read_text("utf-8"))}
    if said.keys() != references_of.keys():
        sys.exit(
            f"{args.results} has {len(said)} images, data set {args.dataset!r} "
            f"{len(references_of)}, and they are not the same: is it the result of another one?"
        )
    if len(said) < 2:
        sys.exit(f"{args.dataset!r} has {len(said)} image: no caption can be another's")
    references = list(references_of.values())
    captions = [said[image_id] for image_id in references_of]
    shifts = range(1, min(len(said) - 1, args.shifts) + 1)
    own = score_captions(captions, references).metrics
    others = [
        score_captions(captions[shift:] + captions[:shift], references).metrics
        for shift in tqdm(shifts, desc="captions of other images", unit="list")
    ]
    return [
        {
            "metric": name,
            "own": value,
            "of other images": mean(metrics[name] for metrics in others),
        }
        for name, value in own.items()
    ]


def detection_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """AP and AP50 of boxes and masks as they are, and under wrong names."""
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
        values = [*own, *(mean(values) for values in zip(*wrong, strict=True))]
        names = ["AP", "AP50", "AP, wrong names", "AP50, wrong names"]
        rows.append({"task": task, **dict(zip(names, values, strict=True))})
    return rows


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--annotations", type=Path, help="of detections, COCO's format")
    truth.add_argument("--dataset", help="of captions, as it is registered")
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
        help="lists of wrong names, or of captions of other images (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
