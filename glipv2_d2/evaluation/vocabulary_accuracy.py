"""VQA accuracy that an answer vocabulary allows, and that of answers without an image."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from glipv2_d2.data.answer_vocabulary import best_answer_in_vocabulary, prior_answers
from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import describe_record
from glipv2_d2.evaluation.text_evaluator import PERCENT
from glipv2_d2.evaluation.vqa import vqa_accuracy
from glipv2_d2.structures import fields

AccuracyRow = tuple[str, str, int, float, float]
"""Dataset, question type, number of questions, upper bound and prior accuracy in percent."""


def accuracy_rows(
    dataset: str, records: Sequence[Record], train: Sequence[Record], vocabulary: Sequence[str]
) -> list[AccuracyRow]:
    """Accuracies of a dataset, for all questions and per question type.

    The upper bound always selects the best answer of the vocabulary. The prior selects the most
    common answer of the question type in ``train``, without an image.

    Raises:
        ValueError: a record has no answers.
    """
    unanswered = next((record for record in records if fields.HUMAN_ANSWERS not in record), None)
    if unanswered is not None:
        raise ValueError(f"{describe_record(unanswered)} has no answers: use datasets with answers")
    answers = frozenset(vocabulary)
    best = [_accuracy(best_answer_in_vocabulary(record, answers), record) for record in records]
    prior = [
        _accuracy(answer, record)
        for answer, record in zip(prior_answers(train, records), records, strict=True)
    ]
    types = [record.get(fields.QUESTION_TYPE) for record in records]
    rows: list[AccuracyRow] = [(dataset, "all", len(records), mean(best), mean(prior))]
    for question_type in sorted({x for x in types if x is not None}):
        indices = [i for i, other in enumerate(types) if other == question_type]
        rows.append(
            (
                dataset,
                question_type,
                len(indices),
                mean(best[i] for i in indices),
                mean(prior[i] for i in indices),
            )
        )
    return rows


def _accuracy(answer: str, record: Record) -> float:
    return PERCENT * vqa_accuracy(answer, record[fields.HUMAN_ANSWERS])
