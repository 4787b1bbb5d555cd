#!/usr/bin/env python
"""Give the phrases of questions and of their answers boxes, with the help of tools/pseudo_label.py.

    python tools/ground_questions.py pairs --dataset vqav2_train --output output/asked/pairs.jsonl
    python tools/pseudo_label.py --config-file ... --weights ... \
        --captions output/asked/pairs.jsonl --output output/asked/labels
    python tools/ground_questions.py join --dataset vqav2_train \
        --labels output/asked/labels/labels.jsonl --output output/asked/train.jsonl

The first command writes a pair of image and "question answer" for every question, the answer being
the one that most people gave; the teacher finds the phrases of both; the last one puts questions,
answers and boxes together. Train on it as {name: ..., format: grounded_text, json: FILE, images: .}
in DATASETS.CUSTOM: the model hides the answer, and its boxes become those of the hidden word.
Questions of which nothing was found stay, without boxes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glipv2_d2.checkpoint.writing import atomic_open
from glipv2_d2.data import builtin  # noqa: F401 - registers the data sets
from glipv2_d2.data.answer_vocabulary import best_answer
from glipv2_d2.data.build import load_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import place_of
from glipv2_d2.engine.setup import load_config
from glipv2_d2.structures import fields

NO_LABELS: dict[str, Any] = {"boxes": [], "spans": [], "scores": [], "phrases": []}


def asked_pair(record: Record) -> tuple[str, str]:
    """The image of a question, and the question with its best answer.

    Raises:
        ValueError: the record has no question or no answer.
    """
    if fields.QUESTION not in record or fields.HUMAN_ANSWERS not in record:
        raise ValueError(f"{place_of(record)} has no question with answers")
    question = record[fields.QUESTION].strip()
    return record["file_name"], f"{question} {best_answer(record)}".strip()


def read_labels(paths: Sequence[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of a teacher by image and caption.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is none of a teacher's.
    """
    labels = {}
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    label = json.loads(line)
                    labels[label["image"], label["caption"]] = label
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path}:{number} is no line of tools/pseudo_label.py "
                        f"({type(error).__name__}: {error}): take it out, or label anew"
                    ) from error
    return labels


def joined_lines(
    records: Sequence[Record], labels: dict[tuple[str, str], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A line per question, with the boxes that the teacher found."""
    for record in tqdm(records, desc="Questions"):
        image, caption = asked_pair(record)
        yield {
            **labels.get((image, caption), NO_LABELS),
            "image": image,
            "caption": caption,
            fields.QUESTION: record[fields.QUESTION],
            fields.QUESTION_ID: record[fields.QUESTION_ID],
            fields.ANSWERS: record[fields.ANSWERS],
        }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("pairs", "join"))
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--labels", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="whose DATASETS.CUSTOM to know"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if (args.step == "join") != bool(args.labels):
        raise ValueError("join needs --labels, the files of the teacher, and pairs has none yet")
    register_custom(load_config(args.config_file).DATASETS.CUSTOM)
    records = [r for name in args.dataset for r in load_dataset(name, filter_empty=False)]
    lines: list[dict[str, Any]]
    if args.step == "pairs":
        pairs = dict.fromkeys(asked_pair(record) for record in records)
        lines = [{"image": image, "caption": caption} for image, caption in pairs]
        message = f"{len(lines)} pairs of {len(records)} questions are in {args.output}"
    else:
        lines = list(joined_lines(records, read_labels(args.labels)))
        num_found = sum(bool(line["boxes"]) for line in lines)
        message = f"{len(lines)} questions, {num_found} of them with boxes, are in {args.output}"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(args.output) as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)
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
