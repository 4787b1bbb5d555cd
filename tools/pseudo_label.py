#!/usr/bin/env python
"""Pseudo-label captioned images: a trained model detects the noun phrases of each caption.

python tools/pseudo_label.py --config-file projects/GLIPv2Mini/configs/glipv2_mini.yaml \
    --weights projects/GLIPv2Mini/glipv2_mini/assets/glipv2_mini.pth \
    --captions captions_train2017.json --images train2017 --output output/pseudo_coco
python tools/pseudo_label.py ... --captions "cc3m-{00000..00331}.tar" --output output/pseudo_cc3m

Captions are COCO's (.json), lines of {"image": ..., "caption": ...} (.jsonl), or WebDataset shards
(.tar). The same command resumes an interrupted run, also with another number of processes.

Exit status: 0 some captions have boxes, 1 none has, 2 the command failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from glipv2_d2.data.readers.captions import MIN_SCORE
from glipv2_d2.engine.pseudo_label.label_shards import (
    LabellingReport,
    LabellingTask,
    label_captions,
)
from glipv2_d2.engine.setup import load_config

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NO_BOXES = 1
COMMAND_FAILED = 2


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    add("--weights", metavar="FILE", help="of the model (default: MODEL.WEIGHTS of its config)")
    add("--captions", required=True, metavar="FILE", help=".json, .jsonl, or .tar with braces")
    add("--images", default="", metavar="DIR", help="image folder, unless the images are in shards")
    add("--output", required=True, type=Path, metavar="DIR", help="output folder")
    add(
        "--threshold",
        type=float,
        default=MIN_SCORE,
        metavar="T",
        help="boxes with a higher score are kept (default: %(default)s, as in GLIP; training "
        f"uses scores above {MIN_SCORE} only)",
    )
    add(
        "--shard-size",
        type=int,
        default=1000,
        metavar="N",
        help="captions per shard, which is written when complete (default: %(default)s); an "
        "interrupted process loses its unfinished shard",
    )
    add(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="processes, each with its own model, assigned to GPUs in turn (default: %(default)s)",
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
        help="config overrides, last on the command line: --opts DATALOADER.NUM_WORKERS 8",
    )
    return parser


def run(args: argparse.Namespace) -> LabellingReport:
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights is not None else []
    task = LabellingTask(
        cfg=load_config(args.config_file, [*args.opts, *weights]),
        captions=args.captions,
        image_root=args.images,
        output=args.output,
        threshold=args.threshold,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
    )
    return label_captions(task, num_processes=args.num_processes, progress=tqdm)


def to_text(report: LabellingReport) -> str:
    """A summary: counts, skipped captions, output files, and a config to train on them."""
    lines = [
        f"{report.num_records} of {report.num_pairs} captions have boxes, {report.num_boxes} in all"
    ]
    lines += [
        f"skipped: {count} {why}, first: {report.left_out.examples[why][0]}"
        for why, count in report.left_out.counts.most_common()
    ]
    lines.append(f"all skipped captions: {report.left_out_file}")
    entry = {"name": "pseudo_train", **report.dataset}
    config = {"DATASETS": {"CUSTOM": [entry], "TRAIN": "('pseudo_train',)"}}
    lines += ["to train on it:", yaml.safe_dump(config, sort_keys=False, width=1000)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    setup_logger(name="glipv2_d2")
    try:
        report = run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return COMMAND_FAILED
    print(to_text(report))
    return 0 if report.num_records else NO_BOXES


if __name__ == "__main__":
    sys.exit(main())
