#!/usr/bin/env python
"""Write the answers that a model of questions chooses from, and tell what they can reach.

    python tools/answer_vocabulary.py --dataset vqav2_train vqav2_val --output answers.txt
        [--min-occurrences 9] [--test NAME ...]

An answer is kept where it is the commonest one of so many questions. The file has one per line, the
commonest first. The table tells, for each data set of --dataset and --test, the accuracy of a model
that always gives the best answer of the list, and of one that does not look: it gives the answer
that is commonest for the type of question in the data sets of --dataset.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from glipv2_d2.checkpoint.writing import atomic_open
from glipv2_d2.data import builtin  # noqa: F401 - registers the data sets
from glipv2_d2.data.answer_vocabulary import build_vocabulary, prior_answers, reachable_answer
from glipv2_d2.data.build import load_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import place_of
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation.texts import PERCENT
from glipv2_d2.evaluation.vqa import vqa_accuracy
from glipv2_d2.structures import fields

Row = tuple[str, str, int, float, float]


def accuracy_rows(
    name: str, records: Sequence[Record], train: Sequence[Record], vocabulary: Sequence[str]
) -> list[Row]:
    """Per type of question and for all: number, best accuracy and that without looking, percent.

    Raises:
        ValueError: a record has no answers to compare with.
    """
    bare = next((record for record in records if fields.HUMAN_ANSWERS not in record), None)
    if bare is not None:
        raise ValueError(f"{place_of(bare)} has no answers: take data sets with answers")
    known = frozenset(vocabulary)
    best = [_accuracy(reachable_answer(record, known), record) for record in records]
    blind = [
        _accuracy(answer, record)
        for answer, record in zip(prior_answers(train, records), records, strict=True)
    ]
    kinds = [record.get(fields.QUESTION_TYPE) for record in records]
    rows: list[Row] = [(name, "all", len(records), mean(best), mean(blind))]
    for kind in sorted({kind for kind in kinds if kind is not None}):
        of_kind = [i for i, other in enumerate(kinds) if other == kind]
        rows.append(
            (
                name,
                kind,
                len(of_kind),
                mean(best[i] for i in of_kind),
                mean(blind[i] for i in of_kind),
            )
        )
    return rows


def _accuracy(answer: str, record: Record) -> float:
    return PERCENT * vqa_accuracy(answer, record[fields.HUMAN_ANSWERS])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--test", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--min-occurrences", type=int, default=9, help="default: %(default)s")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="whose DATASETS.CUSTOM to know"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    register_custom(load_config(args.config_file).DATASETS.CUSTOM)
    per_dataset = {
        name: load_dataset(name, filter_empty=False)
        for name in dict.fromkeys([*args.dataset, *args.test])
    }
    train = [record for name in args.dataset for record in per_dataset[name]]
    vocabulary = build_vocabulary(train, args.min_occurrences)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(args.output) as file:
        file.write("".join(f"{answer}\n" for answer in vocabulary).encode())
    rows = [
        row
        for name, records in per_dataset.items()
        for row in accuracy_rows(name, records, train, vocabulary)
    ]
    headers = ("data set", "questions", "number", "best of the list", "without looking")
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
