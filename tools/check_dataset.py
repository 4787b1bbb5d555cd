#!/usr/bin/env python
"""Is a data set fit for training? Reads all of it, counts what it holds and names what is wrong.

    python tools/check_dataset.py --dataset NAME [NAME ...] [--json FILE] [--no-images]
    python tools/check_dataset.py --config-file configs/... [--opts KEY VALUE ...]

Without --dataset, those of the config's DATASETS.TRAIN and DATASETS.TEST are checked; sets of
DATASETS.CUSTOM are known. Limits of prompts are the config's.

Exit status: 0 nothing wrong, 1 defects found, 2 the check could not be made.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import sys
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate
from tqdm import tqdm

from glipv2_d2.checkpoint.writing import atomic_open
from glipv2_d2.data import builtin  # noqa: F401 - registers the data sets
from glipv2_d2.data.checks import DEFECTS, NOTES, DatasetReport, NameLimits, check_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.setup import load_config
from glipv2_d2.text.tokenizer import Tokenizer

FOUND_DEFECTS = 1
NOT_CHECKED = 2


def dataset_names(cfg: CfgNode, asked: list[str]) -> list[str]:
    """The data sets to check, each once.

    Raises:
        ValueError: there are none, or one is not registered.
    """
    names = list(dict.fromkeys(asked or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ValueError("no data set is named: use --dataset or a config with DATASETS.TRAIN")
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"data set {name!r} is not registered{hint}")
    return names


def to_table(report: DatasetReport) -> str:
    """What the data set holds in a line, then a row per kind of finding."""
    head = (
        f"{report.name}: {report.num_images} images, {report.num_boxes} boxes, "
        f"{report.num_classes} classes in {report.num_prompts} prompts, "
        f"{report.num_captions} captions, {report.num_questions} questions"
    )
    rows = [
        ("defect" if kind in DEFECTS else "note", kind, count, report.faults.examples[kind][0])
        for kind, count in _sorted_counts(report)
    ]
    if not rows:
        return f"{head}\nnothing wrong"
    headers = ("", "what", "count", "first")
    return f"{head}\n{tabulate(rows, headers=headers, maxcolwidths=[None, None, None, 70])}"


def _sorted_counts(report: DatasetReport) -> list[tuple[str, int]]:
    """Defects before notes, in the order in which they are listed in the library."""
    order = [*DEFECTS, *NOTES]
    return sorted(report.faults.counts.items(), key=lambda item: order.index(item[0]))


def to_json(report: DatasetReport) -> dict[str, Any]:
    meaning = DEFECTS | NOTES
    return {
        "dataset": report.name,
        "num_images": report.num_images,
        "num_boxes": report.num_boxes,
        "num_captions": report.num_captions,
        "num_questions": report.num_questions,
        "num_classes": report.num_classes,
        "num_prompts": report.num_prompts,
        "num_defects": report.num_defects,
        "findings": [
            {
                "kind": kind,
                "is_defect": kind in DEFECTS,
                "meaning": meaning[kind],
                "count": count,
                "examples": report.faults.examples[kind],
            }
            for kind, count in _sorted_counts(report)
        ],
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument(
        "--no-images", action="store_true", help="look at the annotations only, not at the images"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values in turn"
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[DatasetReport]:
    cfg = load_config(args.config_file, args.opts)
    register_custom(cfg.DATASETS.CUSTOM)
    prompt = cfg.MODEL.PROMPT
    limits = NameLimits(
        Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, prompt.MAX_TOKENS),
        prompt.SEPARATOR,
        prompt.MAX_CLASSES,
    )
    progress = functools.partial(tqdm, leave=False)
    reports = []
    for name in dataset_names(cfg, args.dataset):
        report = check_dataset(name, limits, open_images=not args.no_images, progress=progress)
        print(to_table(report), end="\n\n")
        reports.append(report)
    if args.json is not None:
        with atomic_open(args.json) as file:
            file.write(json.dumps([to_json(r) for r in reports], indent=1).encode())
    return reports


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        reports = check(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_CHECKED
    num_defects = sum(report.num_defects for report in reports)
    print(f"{num_defects} defects in {len(reports)} data sets")
    return FOUND_DEFECTS if num_defects else 0


if __name__ == "__main__":
    sys.exit(main())
