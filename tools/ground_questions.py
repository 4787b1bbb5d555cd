#!/usr/bin/env python
"""Add pseudo-labelled boxes to questions and answers, or to captions, with glipv2 label.

    python tools/ground_questions.py pairs --dataset vqav2_train --output output/vqa/pairs.jsonl
    glipv2 label --captions output/vqa/pairs.jsonl --images . --output output/vqa/labels
    python tools/ground_questions.py join --dataset vqav2_train \
        --labels output/vqa/labels/labels.jsonl --output output/vqa/train.jsonl

The first command writes the image and the caption "question answer" of every question, with its
most common answer; the second detects the phrases of the captions; the third joins questions,
answers and boxes. Train on the result with {name: ..., format: grounded_text, json: FILE,
images: .} in DATASETS.CUSTOM: the answer is masked in the prompt, and its boxes become those of the
mask token. Questions without detections are kept, without boxes.

For the captions of a dataset the first two commands suffice: lines with boxes of captions have the
format grounded_text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.question_grounding import (
    grounded_questions,
    read_pseudo_labels,
    texts_to_label,
)
from glipv2_d2.engine.setup import load_config
from glipv2_d2.file_writing import atomic_write, dump_json


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("step", choices=("pairs", "join"))
    add("--dataset", nargs="+", required=True, metavar="NAME")
    add("--labels", nargs="+", type=Path, default=[], metavar="FILE", help="pseudo-labels (join)")
    add("--output", type=Path, required=True, metavar="FILE")
    add("--config-file", default="", metavar="FILE", help="registers its DATASETS.CUSTOM")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if (args.step == "join") != bool(args.labels):
        raise ValueError("join needs --labels, the output of glipv2 label; pairs takes none")
    register_custom(load_config(args.config_file).DATASETS.CUSTOM)
    records = [r for name in args.dataset for r in load_dataset(name, filter_empty=False)]
    lines: list[dict[str, Any]]
    if args.step == "pairs":
        pairs = dict.fromkeys(pair for record in records for pair in texts_to_label(record))
        lines = [{"image": image, "caption": caption} for image, caption in pairs]
        message = f"{len(lines)} texts of {len(records)} records are in {args.output}"
    else:
        labels = read_pseudo_labels(args.labels)
        lines = list(grounded_questions(tqdm(records, desc="Questions"), labels))
        num_grounded = sum(bool(line["boxes"]) for line in lines)
        message = f"{len(lines)} questions, {num_grounded} of them with boxes, are in {args.output}"
    atomic_write(args.output, "".join(f"{dump_json(line)}\n" for line in lines))
    print(message)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
