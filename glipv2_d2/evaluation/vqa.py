"""Accuracy of answers, as defined by the VQA challenge.

Each question has ten human answers. The accuracy is the mean over the ten subsets of nine human
answers of min(1, matches / 3): one matching human answer gives 0.3, two 0.6, three 0.9, four 1. If
the human answers differ, they and the predicted answer are normalised
(:func:`~glipv2_d2.text.answers.normalize_answer`); if they are all the same, nothing is, as in the
challenge's script (GT-Vision-Lab/VQA at a013f00, vqaEval.py).

With a single reference answer (GQA, easy-VQA), the accuracy is that of an exact match after
normalising both.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from tabulate import tabulate

from glipv2_d2.evaluation.text_evaluator import PERCENT, TextEvaluator
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import normalize_answer

logger = logging.getLogger(__name__)

TASK = "vqa"
ACCURACY_FILE = "vqa_accuracy.json"
"""Accuracy of all answers, per answer type and per question type."""

MIN_MATCHES = 3


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """The accuracy of one answer, 0..1.

    Args:
        human_answers: one per annotator, not normalised.

    >>> [round(vqa_accuracy("Two.", ["2"] * n + ["3"] * (10 - n)), 2) for n in range(5)]
    [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    if len(human_answers) == 1:
        return float(normalize_answer(answer) == normalize_answer(human_answers[0]))
    if len(set(human_answers)) > 1:
        answer = normalize_answer(answer)
        human_answers = [normalize_answer(human) for human in human_answers]
    else:
        answer = answer.replace("\n", " ").replace("\t", " ").strip()
    matches = [human == answer for human in human_answers]
    total = sum(matches)
    leave_one_out = (min(1.0, (total - match) / MIN_MATCHES) for match in matches)
    return sum(leave_one_out) / len(matches)


class VQAEvaluator(TextEvaluator):
    """Task ``vqa``: accuracy of all answers, and ``accuracy-<type>`` per answer type.

    A test set without public answers has no metrics, only the file for the evaluation server.
    """

    id_key = fields.QUESTION_ID
    text_key = fields.ANSWER
    results_file = "vqa_results.json"

    def measure(
        self, records: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        if not records or not all(fields.HUMAN_ANSWERS in record for record in records):
            logger.info("dataset %r has no reference answers", self.dataset_name)
            return {}
        accuracies = [
            PERCENT * vqa_accuracy(answer, record[fields.HUMAN_ANSWERS])
            for record, answer in zip(records, texts, strict=True)
        ]
        overall = mean(accuracies)
        per_answer_type = means(accuracies, records, fields.ANSWER_TYPE)
        per_question_type = means(accuracies, records, fields.QUESTION_TYPE)
        content = {
            "accuracy": overall,
            "per_answer_type": per_answer_type,
            "per_question_type": per_question_type,
        }
        path = self.output_folder / ACCURACY_FILE
        atomic_write(path, dump_json(content, indent=1))
        rows = [("all", overall), *per_answer_type.items(), *per_question_type.items()]
        table = tabulate(rows, ["answers", "accuracy"], tablefmt="pipe", floatfmt=".2f")
        logger.info("Accuracy on %r, %d questions:\n%s", self.dataset_name, len(records), table)
        per_type = {f"accuracy-{kind}": value for kind, value in per_answer_type.items()}
        return {TASK: {"accuracy": overall, **per_type}}


def means(
    accuracies: Sequence[float], records: Sequence[dict[str, Any]], key: str
) -> dict[str, float]:
    """Mean accuracy per value of ``key``; records without the key are left out.

    >>> means([1.0, 0.0, 0.5], [{"type": "number"}, {"type": "number"}, {}], "type")
    {'number': 0.5}
    """
    by_type = defaultdict(list)
    for accuracy, record in zip(accuracies, records, strict=True):
        if record.get(key) is not None:
            by_type[str(record[key])].append(accuracy)
    return {kind: mean(by_type[kind]) for kind in sorted(by_type)}
