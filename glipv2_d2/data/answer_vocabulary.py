"""The vocabulary of answers that a model classifies, and baselines on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import canonical_answer

# Stands for the type of a question without one.
ANY_TYPE = "all"


def majority_answer(record: Record) -> str:
    """The canonical ``multiple_choice_answer`` of a question, as the published vocabulary has it.

    Without one, the most frequent canonical answer; of several, the first one given.
    """
    most_common = record.get(fields.MOST_COMMON_ANSWER)
    if isinstance(most_common, str):
        return canonical_answer(most_common)
    spelled = [canonical_answer(answer) for answer in record[fields.HUMAN_ANSWERS]]
    return Counter(spelled).most_common(1)[0][0]


def build_vocabulary(records: Iterable[Record], min_occurrences: int) -> list[str]:
    """The majority answers of at least ``min_occurrences`` questions, most frequent first.

    VQAv2's training and validation questions have 3,129 that occur at least 9 times.

    Raises:
        ValueError: a record has no answers, or no answer occurs ``min_occurrences`` times.
    """
    counts: Counter[str] = Counter()
    for record in records:
        if fields.HUMAN_ANSWERS not in record:
            raise ValueError(
                f"question {record.get(fields.QUESTION_ID)!r} of image "
                f"{record.get(fields.FILE_NAME)!r} has no answers: use datasets of questions "
                "with answers"
            )
        counts[majority_answer(record)] += 1
    del counts[""]
    kept = [answer for answer, count in counts.items() if count >= min_occurrences]
    if not kept:
        raise ValueError(
            f"no answer is the majority answer of {min_occurrences} questions; the most frequent "
            f"is that of {max(counts.values(), default=0)}: lower min_occurrences"
        )
    # Ties are sorted alphabetically, so that the order of the records does not matter.
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def best_answer_in_vocabulary(record: Record, vocabulary: frozenset[str]) -> str:
    """The highest-scoring answer to a question within a vocabulary; "" if it has none of them."""
    known = {a: score for a, score in record[fields.ANSWERS].items() if a in vocabulary}
    return max(known, key=known.__getitem__, default="")


def most_common_answers(records: Iterable[Record]) -> dict[str, str]:
    """The most frequent majority answer of each question type, a baseline that ignores the image.

    All questions without a type count as one type.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.get(fields.QUESTION_TYPE, ANY_TYPE)][majority_answer(record)] += 1
    return {kind: count.most_common(1)[0][0] for kind, count in counts.items()}


def prior_answers(train: Iterable[Record], questions: Sequence[Record]) -> list[str]:
    """The training set's :func:`most_common_answers` per question; "" for an unknown type."""
    answer_of = most_common_answers(train)
    return [answer_of.get(record.get(fields.QUESTION_TYPE, ANY_TYPE), "") for record in questions]
