"""Recall of phrase grounding on Flickr30k Entities.

A phrase counts as found at k if one of its k boxes with the highest scores has an IoU of at least
0.5 with

- *any box* of its ground truth: the protocol of MDETR and GLIP, task ``grounding``;
- *the merged box*, the smallest box around all of them: task ``grounding_merged``.

R@all is the upper bound over all boxes of a phrase. GLIP evaluates boxes that are one pixel
narrower, with inclusive corners (glip_reference.md 18); corners are exclusive here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from tabulate import tabulate
from torch import Tensor

from glipv2_d2.evaluation.phrase_evaluator import (
    PERCENT,
    PhraseEvaluator,
    PhraseTruth,
    Row,
    best_ious,
)

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
RECALL_AT = (1, 5, 10)
# Detections of each phrase in the result file.
WRITTEN_DETECTIONS = 10

ANY_BOX, MERGED_BOX = "grounding", "grounding_merged"


class Flickr30kEvaluator(PhraseEvaluator):
    """Recall@1, 5 and 10 of all phrases, and of each phrase type of the dataset.

    Metrics of a type are named ``R@1-people`` etc.; a phrase with several types counts in each.
    """

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        super().__init__(dataset_name, output_folder, "phrase_recall.json")

    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """Rank, from 1, of the first correct box in each protocol; None if there is none."""
        written = detections[:WRITTEN_DETECTIONS]
        return {
            "types": list(truth.kinds),
            ANY_BOX: first_hit(detections, truth.boxes),
            MERGED_BOX: first_hit(detections, merged_box(truth.boxes)),
            "boxes": written.pred_boxes.tensor.tolist(),
            "scores": written.scores.tolist(),
        }

    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        kinds = sorted({kind for row in rows for kind in row["types"]})
        results: dict[str, dict[str, float]] = {}
        for task in (ANY_BOX, MERGED_BOX):
            recall = recalls([row[task] for row in rows])
            for kind in kinds:
                of_kind = recalls([row[task] for row in rows if kind in row["types"]])
                recall |= {f"{name}-{kind}": value for name, value in of_kind.items()}
            results[task] = recall
        self._log(rows, kinds, results)
        return results

    def _log(
        self, rows: Sequence[Row], kinds: Sequence[str], results: dict[str, dict[str, float]]
    ) -> None:
        names = list(recalls([]))
        for task, recall in results.items():
            table = [["all", len(rows), *(recall[name] for name in names)]]
            for kind in kinds:
                count = sum(kind in row["types"] for row in rows)
                table.append([kind, count, *(recall[f"{name}-{kind}"] for name in names)])
            lines = tabulate(table, ["phrases", "number", *names], tablefmt="pipe", floatfmt=".2f")
            logger.info("Recall (%s) of %r:\n%s", task, self.dataset_name, lines)


def merged_box(boxes: Tensor) -> Tensor:
    """(1, 4) the smallest box around all boxes (G, 4).

    >>> merged_box(torch.tensor([[0., 5., 2., 6.], [1., 0., 9., 2.]])).tolist()
    [[0.0, 0.0, 9.0, 6.0]]
    """
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])[None]


def first_hit(detections: Instances, gt_boxes: Tensor) -> int | None:
    """Rank, from 1, of the first detection with an IoU of at least :data:`MIN_IOU`."""
    is_hit = best_ious(detections.pred_boxes, gt_boxes) >= MIN_IOU
    return int(is_hit.int().argmax()) + 1 if bool(is_hit.any()) else None


def recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    """R@k in percent, nan without phrases.

    >>> recalls([1, 4, None, 1])
    {'R@1': 50.0, 'R@5': 75.0, 'R@10': 75.0, 'R@all': 75.0}
    """
    limits = {f"R@{k}": float(k) for k in RECALL_AT} | {"R@all": float("inf")}
    return {
        name: PERCENT * sum(rank is not None and rank <= limit for rank in ranks) / len(ranks)
        if ranks
        else float("nan")
        for name, limit in limits.items()
    }
