"""Answers and captions together with the boxes of their phrases, where a record has the truth.

Task ``grounding`` of questions: R@1, 5 and 10 of the phrases of the question, a phrase being found
by the detections of the predicted phrase that shares most characters with it; and ``answer-R@1``
of the answers with boxes, found by those of the predicted answer.

Task ``grounding`` of captions, after Zhou et al., Grounded Video Description (arXiv 1812.06587): a
generated phrase is correct if a reference has a phrase of the same head noun (its last word, in
the singular) with a box that overlaps the best detection. ``F1_all`` is over all generated phrases
and all head nouns of the references; ``F1_loc`` is the share of correct phrases among those whose
noun a reference has. Both are over the dataset, not per class (our choice).

A box is found at an IoU of 0.5. Records without boxes count for the text alone.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from torch import Tensor

from glipv2_d2.data.sanitize import caption_labels
from glipv2_d2.evaluation.captions import CaptionEvaluator
from glipv2_d2.evaluation.flickr30k import first_hit, recalls
from glipv2_d2.evaluation.phrase_evaluator import best_first
from glipv2_d2.evaluation.text_evaluator import PERCENT, TextEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.structures.text import Span, span_texts
from glipv2_d2.text.names import singular_spelling

logger = logging.getLogger(__name__)

TASK = "grounding"

Spans = Sequence[Span]


class _GroundedEvaluator(TextEvaluator):
    """Adds the task ``grounding`` to the metrics of the text."""

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        super().__init__(dataset_name, output_folder)
        self._rows: list[dict[str, Any]] = []

    def reset(self) -> None:
        super().reset()
        self._rows = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        for x, output in zip(inputs, outputs, strict=True):
            record = self._records[x[self.id_key]]
            if not record.get("annotations"):
                continue
            if fields.PROMPT not in output:
                raise ValueError(
                    f"the output for {self.id_key} {x[self.id_key]!r} has no boxes of its text: "
                    "its input should have 'ground'"
                )
            detections = best_first(output[fields.INSTANCES].to("cpu"))
            self._rows.append(self.ground(record, output[fields.PROMPT], detections))

    @abstractmethod
    def ground(
        self, record: dict[str, Any], prompt: Prompt, detections: Instances
    ) -> dict[str, Any]:
        """What is found of one record, as JSON values.

        Args:
            prompt: the predicted text and its phrases.
            detections: best first; ``pred_classes`` index the phrases.
        """

    @abstractmethod
    def summarize(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """The metrics of the task ``grounding``, in percent."""

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Task -> metrics in the main process, an empty dict in the others."""
        results = super().evaluate()
        gathered = comm.gather(self._rows, dst=0)
        rows = [row for part in gathered for row in part]
        if not rows:
            return results
        metrics = self.summarize(rows)
        logger.info("Grounding on %r, %d records: %s", self.dataset_name, len(rows), metrics)
        return {**results, TASK: metrics}


class GroundedVQAEvaluator(_GroundedEvaluator, VQAEvaluator):
    """Task ``vqa`` and the recall of the boxes of questions and answers."""

    def ground(
        self, record: dict[str, Any], prompt: Prompt, detections: Instances
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"question": [], "answer": []}
        # The answer follows the question and a blank, in the truth and in the prediction.
        end = len(record[fields.QUESTION].strip())
        answers = [i for i, spans in enumerate(prompt.spans) if spans[0][0] >= end]
        for spans, boxes in _phrase_boxes(record):
            if spans[0][0] >= end:
                part, label = "answer", answers[0] if answers else None
            else:
                part, label = "question", _most_similar(spans, prompt, end)
            row[part].append(first_hit(detections[detections.pred_classes == label], boxes))
        return row

    def summarize(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        ranks = {part: [r for row in rows for r in row[part]] for part in ("question", "answer")}
        metrics = recalls(ranks["question"]) if ranks["question"] else {}
        if ranks["answer"]:
            metrics["answer-R@1"] = recalls(ranks["answer"])["R@1"]
        return metrics


class GroundedCaptionEvaluator(_GroundedEvaluator, CaptionEvaluator):
    """Task ``captions`` and the grounding of the generated captions."""

    def ground(
        self, record: dict[str, Any], prompt: Prompt, detections: Instances
    ) -> dict[str, Any]:
        boxes_of = defaultdict(list)
        for spans, boxes in _phrase_boxes(record):
            boxes_of[head_noun(span_texts(record[fields.CAPTION], [spans])[0])].append(boxes)
        nouns = [head_noun(phrase) for phrase in prompt.phrases]
        known = [label for label, noun in enumerate(nouns) if noun in boxes_of]
        correct = [
            label
            for label in known
            if first_hit(
                detections[detections.pred_classes == label][:1], torch.cat(boxes_of[nouns[label]])
            )
        ]
        return {
            "generated": len(nouns),
            "known": len(known),
            "correct": len(correct),
            "nouns": len(boxes_of),
            "found": len({nouns[label] for label in correct}),
        }

    def summarize(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        precision = total["correct"] / max(total["generated"], 1)
        recall = total["found"] / max(total["nouns"], 1)
        both = precision + recall
        return {
            "F1_all": PERCENT * (2 * precision * recall / both if both else 0.0),
            "F1_loc": PERCENT * total["correct"] / max(total["known"], 1),
        }


def head_noun(phrase: str) -> str:
    """The last word of a phrase, in the singular.

    >>> head_noun("two small Dogs.")
    'dog'
    """
    words = phrase.strip(" .,!?").split()
    return singular_spelling(words[-1]) if words else ""


def _phrase_boxes(record: dict[str, Any]) -> list[tuple[Spans, Tensor]]:
    """The spans and boxes (G, 4), XYXY, of each phrase of a record that has any."""
    phrases, labels = caption_labels(record)
    boxes_of: dict[int, list[list[float]]] = defaultdict(list)
    for annotation, label in zip(record["annotations"], labels, strict=True):
        if label is not None:
            box = BoxMode.convert(
                list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
            )
            boxes_of[label].append(box)
    return [(phrases[label], torch.tensor(boxes)) for label, boxes in sorted(boxes_of.items())]


def _most_similar(spans: Spans, prompt: Prompt, end: int) -> int | None:
    """The label before ``end`` with the largest overlap in characters; None if none overlaps."""
    truth = _characters(spans)
    best, best_overlap = None, 0.0
    for label, of_label in enumerate(prompt.spans):
        if of_label[0][0] < end:
            characters = _characters(of_label)
            overlap = len(truth & characters) / len(truth | characters)
            if overlap > best_overlap:
                best, best_overlap = label, overlap
    return best


def _characters(spans: Spans) -> set[int]:
    return {i for begin, end in spans for i in range(begin, end)}
