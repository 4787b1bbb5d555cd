"""Recall of phrases in images, as Flickr30k Entities measures it.

A phrase is found at k when one of its k boxes of highest score has an IoU of at least 0.5 with

- *any box* of its ground truth: MDETR's and GLIP's protocol, task ``grounding``;
- *the merged box*, the smallest that holds all of them: task ``grounding_merged``.

R@all is what its boxes could reach in the best order. GLIP measures its predictions without the
pixel by which their corners are inclusive (GLIP spec 18); here they have it, as everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from tabulate import tabulate
from torch import Tensor

from glipv2_d2.evaluation.phrases import PERCENT, PhraseEvaluator, PhraseTruth, Row, best_ious

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
RECALL_AT = (1, 5, 10)
# Of every phrase, kept in the file.
WRITTEN_DETECTIONS = 10

ANY_BOX, MERGED_BOX = "grounding", "grounding_merged"


class Flickr30kEvaluator(PhraseEvaluator):
    """Recall@1, 5 and 10 of phrases, of all and of each kind of phrase that the data set knows.

    The metrics of a kind are ``R@1-people`` and so on; a phrase of several kinds counts in each.
    """

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        super().__init__(dataset_name, output_folder, "phrase_recall.json")

    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """The rank, from 1, of the first box that is right in each protocol; None: none is."""
        shown = detections[:WRITTEN_DETECTIONS]
        return {
            "types": list(truth.kinds),
            ANY_BOX: first_hit(detections, truth.boxes),
            MERGED_BOX: first_hit(detections, merged_box(truth.boxes)),
            "boxes": shown.pred_boxes.tensor.tolist(),
            "scores": shown.scores.tolist(),
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
        self._tell(rows, kinds, results)
        return results

    def _tell(
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
    """(1, 4) the smallest box that holds all of (G, 4).

    >>> merged_box(torch.tensor([[0., 5., 2., 6.], [1., 0., 9., 2.]])).tolist()
    [[0.0, 0.0, 9.0, 6.0]]
    """
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])[None]


def first_hit(detections: Instances, gt_boxes: Tensor) -> int | None:
    """The rank, from 1, of the first detection with enough IoU."""
    is_hit = best_ious(detections.pred_boxes, gt_boxes) >= MIN_IOU
    return int(is_hit.int().argmax()) + 1 if bool(is_hit.any()) else None


def recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    """R@k in percent, nan without any phrase.

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
