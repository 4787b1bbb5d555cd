"""Reports about class names: absent classes, prompt order and score thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from glipv2_d2.evaluation.calibration import TOO_FEW, Calibration, ClassThreshold
from glipv2_d2.evaluation.class_scores import ClassSummary, OrderSensitivity
from glipv2_d2.evaluation.matching import Quality


@dataclass(frozen=True)
class ClassReport:
    """A table with one row per class, as text and as JSON.

    Attributes:
        columns, rows: of the table; nan is shown as "-".
        sentences: conclusions, printed below the table.
        content: JSON values; may contain nan.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Any]]
    sentences: list[str]
    content: dict[str, Any]

    def text(self, table_format: str = "simple") -> str:
        """The table and the sentences.

        Args:
            table_format: a format of tabulate; "github" gives a Markdown page.
        """
        title = f"# {self.title}" if table_format == "github" else self.title
        rows = [[_cell(value) for value in row] for row in self.rows]
        align = ["left" if isinstance(v, str) else "right" for v in (self.rows or [[]])[0]]
        table = tabulate(rows, self.columns, table_format, colalign=align, disable_numparse=True)
        return "\n\n".join([title, table, *self.sentences]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """``content`` with null in place of nan."""
        return _without_nan(self.content)


def absent_report(
    summaries: Sequence[ClassSummary], thresholds: dict[str, float], num_images: int
) -> ClassReport:
    """Report classes whose score is below the threshold in every image.

    Args:
        thresholds: class name -> the score from which it counts as detected.
    """
    absent = [summary.name for summary in summaries if summary.num_images == 0]
    return ClassReport(
        f"Best score of each class in {num_images} images",
        ("class", "best", "median", "threshold", "images", "best in"),
        [
            [s.name, s.best_score, s.median_score, thresholds[s.name], s.num_images, s.best_image]
            for s in summaries
        ],
        [
            f"{len(absent)} of {len(summaries)} classes stay below their threshold in every image: "
            f"{', '.join(absent) or 'none'}.",
            "According to the model these objects are absent. A class above its threshold may "
            "still be a false positive: check the images.",
        ],
        {
            "num_images": num_images,
            "absent": absent,
            "names": [{**asdict(s), "threshold": thresholds[s.name]} for s in summaries],
        },
    )


def order_report(
    found: OrderSensitivity, *, num_images: int, num_orders: int, num_averaged: int
) -> ClassReport:
    """Report how much the scores depend on the order of the class names in the prompt.

    Args:
        num_orders: number of compared orders.
        num_averaged: orders over which the model averages each score; 0: no averaging.
    """
    rows = [
        [
            found.names[i],
            float(found.class_mean_score[i]),
            float(found.class_mean_spread[i]),
            float(found.class_max_spread[i]),
        ]
        for i in np.argsort(-found.class_mean_spread)
    ]
    return ClassReport(
        f"{len(found.names)} classes in {num_orders} orders on {num_images} images",
        ("class", "mean score", "mean spread", "largest spread"),
        rows,
        [
            "Spread: highest minus lowest score of a class in an image over the orders; "
            f"mean {found.mean_spread:.5f}, maximum {found.max_spread:.5f}, with "
            f"MODEL.PROMPT.NUM_ORDERS {num_averaged}.",
            f"{found.changed_decisions:.2%} of the (image, class) pairs reach the threshold in "
            "some orders only. The class with the highest score depends on the order in "
            f"{found.changed_top_classes:.2%} of the images.",
        ],
        {
            "num_images": num_images,
            "num_orders": num_orders,
            "num_orders_averaged": num_averaged,
            "mean_spread": found.mean_spread,
            "max_spread": found.max_spread,
            "changed_decisions": found.changed_decisions,
            "changed_top_classes": found.changed_top_classes,
            "names": [
                dict(zip(("name", "mean_score", "mean_spread", "max_spread"), row, strict=True))
                for row in rows
            ],
        },
    )


def calibration_report(found: Calibration, *, num_images: int, target: str) -> ClassReport:
    """Report the proposed thresholds and their quality.

    Args:
        target: the selection criterion, such as "the best F1".
    """
    columns = ("class", "threshold", "boxes", "detections", "correct")
    metrics = ("precision", "95 %", "recall", "F1", "remark")
    proposals = [*found.classes, found.overall]
    few = [proposal.name for proposal in found.classes if proposal.status == TOO_FEW]
    sentences = [
        f"Selected for {target} on these {num_images} images; 95 %: confidence interval of the "
        "precision.",
        "Two-fold cross-validation over the images: "
        f"{_metrics(found.held_out_classes)} with thresholds per class, "
        f"{_metrics(found.held_out_overall)} with one threshold for all classes.",
    ]
    if few:
        sentences.append(
            f"{len(few)} of {len(found.classes)} classes have too few boxes for their own "
            f"threshold and use that of all classes, {found.overall.threshold:.3f}: "
            f"{', '.join(few)}."
        )
    return ClassReport(
        f"Thresholds of {len(found.classes)} classes",
        (*columns, *metrics),
        [_proposal_row(proposal) for proposal in proposals],
        sentences,
        {
            "num_images": num_images,
            "target": target,
            "overall": _proposal_json(found.overall),
            "names": [_proposal_json(proposal) for proposal in found.classes],
            "held_out": {
                "thresholds_per_class": _quality_json(found.held_out_classes),
                "one_threshold": _quality_json(found.held_out_overall),
            },
        },
    )


def _proposal_row(proposal: ClassThreshold) -> list[Any]:
    quality = proposal.quality
    low, high = quality.precision_interval
    return [
        proposal.name,
        proposal.threshold,
        quality.num_boxes,
        quality.num_detections,
        quality.num_true_positives,
        quality.precision,
        f"{low:.2f} to {high:.2f}",
        quality.recall,
        quality.f1,
        proposal.status,
    ]


def _proposal_json(proposal: ClassThreshold) -> dict[str, Any]:
    return {
        "name": proposal.name,
        "threshold": proposal.threshold,
        "status": proposal.status,
        "best_wrong_score": proposal.best_wrong_score,
        **_quality_json(proposal.quality),
    }


def _quality_json(quality: Quality) -> dict[str, Any]:
    return {
        **asdict(quality),
        "precision": quality.precision,
        "precision_interval": list(quality.precision_interval),
        "recall": quality.recall,
        "f1": quality.f1,
    }


def _metrics(quality: Quality) -> str:
    return (
        f"precision {_cell(quality.precision)}, recall {_cell(quality.recall)}, "
        f"F1 {_cell(quality.f1)}"
    )


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
