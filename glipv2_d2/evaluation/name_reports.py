"""What was found out about names, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from glipv2_d2.evaluation.calibration import TOO_FEW, Calibration, ClassThreshold
from glipv2_d2.evaluation.matching import Quality
from glipv2_d2.evaluation.name_scores import NameSummary, OrderSensitivity


@dataclass(frozen=True)
class NameReport:
    """A table of names, sentences about it, and both for programs.

    Attributes:
        columns, rows: of the table; a nan is shown as "-".
        sentences: what follows from it.
        content: JSON values; nan stands where nothing can be said.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Any]]
    sentences: list[str]
    content: dict[str, Any]

    def text(self, table_format: str = "simple") -> str:
        """The table and the sentences.

        Args:
            table_format: one of tabulate's; "github" makes it a page of Markdown.
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
    summaries: Sequence[NameSummary], thresholds: dict[str, float], num_images: int
) -> NameReport:
    """Which names are seen in no picture.

    Args:
        thresholds: of every name, the score at which it counts as seen.
    """
    absent = [summary.name for summary in summaries if summary.num_images == 0]
    return NameReport(
        f"The best score of every name in {num_images} pictures",
        ("name", "best", "median", "threshold", "pictures", "best in"),
        [
            [s.name, s.best_score, s.median_score, thresholds[s.name], s.num_images, s.best_image]
            for s in summaries
        ],
        [
            f"{len(absent)} of {len(summaries)} names stay below their threshold in every picture: "
            f"{', '.join(absent) or 'none'}.",
            "As far as this model can tell they are not there. A name above it may still be "
            "mistaken: look at the picture.",
        ],
        {
            "num_images": num_images,
            "absent": absent,
            "names": [{**asdict(s), "threshold": thresholds[s.name]} for s in summaries],
        },
    )


def order_report(
    found: OrderSensitivity, *, num_images: int, num_orders: int, num_averaged: int
) -> NameReport:
    """How far the order of names moves their scores.

    Args:
        num_orders: that were compared.
        num_averaged: orders whose mean each of the scores is; 0: of the asked one alone.
    """
    rows = [
        [
            found.names[i],
            float(found.mean_score_of_name[i]),
            float(found.mean_spread_of_name[i]),
            float(found.max_spread_of_name[i]),
        ]
        for i in np.argsort(-found.mean_spread_of_name)
    ]
    return NameReport(
        f"{len(found.names)} names in {num_orders} orders, asked of {num_images} pictures",
        ("name", "mean score", "mean spread", "largest spread"),
        rows,
        [
            "A spread is the highest minus the lowest score of a name in a picture: "
            f"{found.mean_spread:.5f} in the mean, {found.max_spread:.5f} at most, with "
            f"MODEL.PROMPT.NUM_ORDERS {num_averaged}.",
            f"{found.changed_decisions:.2%} of the (picture, name) pairs reach the threshold in "
            "some of the orders only. The surest name depends on the order in "
            f"{found.changed_best_names:.2%} of the pictures.",
        ],
        {
            "num_images": num_images,
            "num_orders": num_orders,
            "num_orders_averaged": num_averaged,
            "mean_spread": found.mean_spread,
            "max_spread": found.max_spread,
            "changed_decisions": found.changed_decisions,
            "changed_best_names": found.changed_best_names,
            "names": [
                dict(zip(("name", "mean_score", "mean_spread", "max_spread"), row, strict=True))
                for row in rows
            ],
        },
    )


def calibration_report(found: Calibration, *, num_images: int, wanted: str) -> NameReport:
    """The proposed thresholds, and how far they can be trusted.

    Args:
        wanted: what they were chosen for, in words.
    """
    columns = ("name", "threshold", "boxes", "found", "right", "precision", "95 %", "recall", "F1")
    proposals = [*found.classes, found.overall]
    few = [proposal.name for proposal in found.classes if proposal.status == TOO_FEW]
    sentences = [
        f"Chosen for {wanted}, on these {num_images} pictures; 95 %: where the precision lies.",
        "On pictures that they were not chosen on (each half with the thresholds of the other): "
        f"{_in_words(found.checked_classes)} with these, {_in_words(found.checked_overall)} with "
        "one threshold for all names.",
    ]
    if few:
        sentences.append(
            f"{len(few)} of {len(found.classes)} names have too few boxes for a threshold of their "
            f"own and get that of all names, {found.overall.threshold:.3f}: {', '.join(few)}."
        )
    return NameReport(
        f"Thresholds of {len(found.classes)} names",
        (*columns, "remark"),
        [_proposal_row(proposal) for proposal in proposals],
        sentences,
        {
            "num_images": num_images,
            "wanted": wanted,
            "overall": _proposal_json(found.overall),
            "names": [_proposal_json(proposal) for proposal in found.classes],
            "held_out": {
                "thresholds_of_names": _quality_json(found.checked_classes),
                "one_threshold": _quality_json(found.checked_overall),
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
        quality.num_right,
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


def _in_words(quality: Quality) -> str:
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
