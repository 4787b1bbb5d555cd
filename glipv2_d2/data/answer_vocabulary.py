"""Which answers a model chooses from, and what a list of them can reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from glipv2_d2.data.registration import Record
from glipv2_d2.structures import fields
from glipv2_d2.text.answers import canonical_answer

NO_TYPE = "all"


def best_answer(record: Record) -> str:
    """The answer that most people gave to a question, canonical; of equals the first one given."""
    spelled = [canonical_answer(answer) for answer in record[fields.HUMAN_ANSWERS]]
    return Counter(spelled).most_common(1)[0][0]


def build_vocabulary(records: Iterable[Record], min_occurrences: int) -> list[str]:
    """The answers that are the best one of so many questions, the commonest first.

    VQAv2's training and validation questions have 3,129 that occur at least 9 times (from memory;
    the files were not at hand).

    Raises:
        ValueError: a record has no answers, or no answer occurs so often.
    """
    counts: Counter[str] = Counter()
    for record in records:
        if fields.HUMAN_ANSWERS not in record:
            raise ValueError(
                f"question {record.get(fields.QUESTION_ID)!r} of image "
                f"{record.get(fields.FILE_NAME)!r} has no answers: take data sets of questions "
                "with answers"
            )
        counts[best_answer(record)] += 1
    del counts[""]
    kept = [answer for answer, count in counts.items() if count >= min_occurrences]
    if not kept:
        raise ValueError(
            f"no answer is that of {min_occurrences} questions; the commonest is that of "
            f"{max(counts.values(), default=0)}: ask for fewer occurrences"
        )
    # Of equal counts in the order of the alphabet, so that the order of the data does not matter.
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def reachable_answer(record: Record, vocabulary: frozenset[str]) -> str:
    """The best answer to a question that a vocabulary has; "" where it has none."""
    known = {a: score for a, score in record[fields.ANSWERS].items() if a in vocabulary}
    return max(known, key=known.__getitem__, default="")


def commonest_answers(records: Iterable[Record]) -> dict[str, str]:
    """The answer that is right most often to the questions of each type.

    A model that does not look at the image can give it. Questions without a type are one type.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.get(fields.QUESTION_TYPE, NO_TYPE)][best_answer(record)] += 1
    return {kind: count.most_common(1)[0][0] for kind, count in counts.items()}


def prior_answers(train: Iterable[Record], asked: Sequence[Record]) -> list[str]:
    """What :func:`commonest_answers` of the training questions answer; "" to an unknown type."""
    answer_of = commonest_answers(train)
    return [answer_of.get(record.get(fields.QUESTION_TYPE, NO_TYPE), "") for record in asked]


def unlikely_answers(records: Sequence[Record]) -> list[Record]:
    """The questions whose answer is not the commonest one of those who ask in the same words.

    Who does not look at the image is wrong in all of them (our choice, in the spirit of VQA-CP): a
    model that learns more of them learns sooner to look.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record[fields.QUESTION]][best_answer(record)] += 1
    likely = {question: count.most_common(1)[0][0] for question, count in counts.items()}
    return [r for r in records if best_answer(r) != likely[r[fields.QUESTION]]]
