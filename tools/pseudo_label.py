#!/usr/bin/env python
"""Make grounded training data of captions: a trained model finds what the noun phrases name.

python tools/pseudo_label.py --config-file configs/mini/glipv2_mini.yaml \
    --weights glipv2_d2/assets/glipv2_mini.pth \
    --captions captions_train2017.json --images train2017 --output output/pseudo_coco
python tools/pseudo_label.py ... --captions "cc3m-{00000..00331}.tar" --output output/pseudo_cc3m

Captions are COCO's (.json), lines of {"image": ..., "caption": ...} (.jsonl), or WebDataset shards
(.tar). The same command goes on where a run has stopped, also one that was killed, and with another
number of processes.

Exit status: 0 there is something to train on, 1 no caption got a box, 2 it could not be done.
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
from glipv2_d2.engine.label_shards import LabellingReport, LabellingTask, label_captions
from glipv2_d2.engine.setup import load_config

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NOTHING_LABELLED = 1
NOT_DONE = 2


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the config of the teacher")
    add("--weights", metavar="FILE", help="of the teacher (default: MODEL.WEIGHTS of its config)")
    add("--captions", required=True, metavar="FILE", help=".json, .jsonl, or .tar with braces")
    add("--images", default="", metavar="DIR", help="of the images, unless they are in shards")
    add("--output", required=True, type=Path, metavar="DIR", help="where everything goes")
    add(
        "--threshold",
        type=float,
        default=MIN_SCORE,
        metavar="T",
        help="boxes are kept whose score is above it (default: %(default)s, as in GLIP; training "
        f"reads those above {MIN_SCORE} only)",
    )
    add(
        "--shard-size",
        type=int,
        default=1000,
        metavar="N",
        help="captions of a shard, which is written when it is whole (default: %(default)s); a "
        "process that is killed loses what it has of one",
    )
    add(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="each with a teacher of its own, on the next GPU where there are several "
        "(default: %(default)s)",
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
        help="changes to the config, last on the line: --opts DATALOADER.NUM_WORKERS 8",
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
    """What was written and where, what was left out, and how to train on it."""
    lines = [
        f"{report.num_records} of {report.num_pairs} captions have boxes, {report.num_boxes} in all"
    ]
    lines += [
        f"left out: {count} {why}, first: {report.left_out.examples[why][0]}"
        for why, count in report.left_out.counts.most_common()
    ]
    lines.append(f"why each was left out: {report.left_out_file}")
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
        return NOT_DONE
    print(to_text(report))
    return 0 if report.num_records else NOTHING_LABELLED


if __name__ == "__main__":
    sys.exit(main())
