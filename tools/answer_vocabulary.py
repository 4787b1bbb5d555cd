#!/usr/bin/env python
"""Write an answer vocabulary for VQA, and print the accuracy that it allows.

    python tools/answer_vocabulary.py --dataset vqav2_train vqav2_val --output answers.txt
        [--min-occurrences 9] [--test NAME ...]

The vocabulary has the answers that are the most common one of at least --min-occurrences questions,
one per line, most frequent first. For each dataset of --dataset and --test, the table has the
accuracy of the best answer of the vocabulary (an upper bound) and of the most common answer per
question type in the datasets of --dataset (a prior, without the image).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
from glipv2_d2.data.answer_vocabulary import build_vocabulary
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation.vocabulary_accuracy import accuracy_rows
from glipv2_d2.file_writing import atomic_write


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", nargs="+", required=True, metavar="NAME")
    add("--test", nargs="+", default=[], metavar="NAME")
    add("--output", type=Path, required=True, metavar="FILE")
    add("--min-occurrences", type=int, default=9, help="default: %(default)s")
    add("--config-file", default="", metavar="FILE", help="registers its DATASETS.CUSTOM")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    register_custom(load_config(args.config_file).DATASETS.CUSTOM)
    datasets = {
        name: load_dataset(name, filter_empty=False)
        for name in dict.fromkeys([*args.dataset, *args.test])
    }
    train = [record for name in args.dataset for record in datasets[name]]
    vocabulary = build_vocabulary(train, args.min_occurrences)
    atomic_write(args.output, "".join(f"{answer}\n" for answer in vocabulary))
    rows = [
        row
        for name, records in datasets.items()
        for row in accuracy_rows(name, records, train, vocabulary)
    ]
    headers = ("dataset", "questions", "number", "upper bound", "prior")
    print(tabulate(rows, headers, floatfmt=".2f"))
    print(f"{len(vocabulary)} answers are in {args.output}")


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
