"""Accuracy of answers, as the VQA challenge measures it.

Ten people answered each question. A model's answer is compared with those of nine of them, ten
times, each time without another one: it is worth a third for each of the nine who said the same,
at most 1; the accuracy is the mean. So one person who agrees gives 0.3, two 0.6, three 0.9, four 1.
The model's answer is normalized (:func:`~glipv2_d2.text.answers.normalize_answer`); people's lose
their punctuation, and that only where they disagree, as in the challenge's script.

Where one answer is known (GQA, easy-VQA), it is right or not; both are normalized.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from tabulate import tabulate

from glipv2_d2.evaluation.texts import PERCENT, TextEvaluator
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import normalize_answer, strip_punctuation

logger = logging.getLogger(__name__)

TASK = "vqa"
ACCURACY_FILE = "vqa_accuracy.json"
"""The accuracy of all, and of each type of answer and of question."""

ENOUGH_PEOPLE = 3


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """The accuracy of one answer, 0..1.

    Args:
        human_answers: one per person, as it was written.

    >>> [round(vqa_accuracy("Two.", ["2"] * n + ["3"] * (10 - n)), 2) for n in range(5)]
    [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    given = normalize_answer(answer)
    if len(human_answers) == 1:
        return float(given == normalize_answer(human_answers[0]))
    if len(set(human_answers)) > 1:
        human_answers = [strip_punctuation(human) for human in human_answers]
    agree = [human == given for human in human_answers]
    total = sum(agree)
    left_out = (min(1.0, (total - own) / ENOUGH_PEOPLE) for own in agree)
    return sum(left_out) / len(agree)


class VQAEvaluator(TextEvaluator):
    """Task ``vqa``: the accuracy of all answers, and ``accuracy-<type>`` of each type of answer.

    A test set, whose answers nobody knows, has no metrics; there is only the file for the server.
    """

    id_key = fields.QUESTION_ID
    text_key = fields.ANSWER
    results_file = "vqa_results.json"

    def measure(
        self, records: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        if not records or not all(fields.HUMAN_ANSWERS in record for record in records):
            logger.info("data set %r has no answers to compare with", self.dataset_name)
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
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        rows = [("all", overall), *per_answer_type.items(), *per_question_type.items()]
        table = tabulate(rows, ["answers", "accuracy"], tablefmt="pipe", floatfmt=".2f")
        logger.info("Accuracy on %r, %d questions:\n%s", self.dataset_name, len(records), table)
        per_type = {f"accuracy-{kind}": value for kind, value in per_answer_type.items()}
        return {TASK: {"accuracy": overall, **per_type}}


def means(
    accuracies: Sequence[float], records: Sequence[dict[str, Any]], key: str
) -> dict[str, float]:
    """The mean accuracy of each type of record; records that name none are left out.

    >>> means([1.0, 0.0, 0.5], [{"type": "number"}, {"type": "number"}, {}], "type")
    {'number': 0.5}
    """
    by_type = defaultdict(list)
    for accuracy, record in zip(accuracies, records, strict=True):
        if record.get(key) is not None:
            by_type[str(record[key])].append(accuracy)
    return {kind: mean(by_type[kind]) for kind in sorted(by_type)}
