"""Reports of :mod:`glipv2_d2.data.checks` as a table and as JSON."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from glipv2_d2.data.checks import DEFECTS, NOTES, DatasetReport

_MAX_EXAMPLE_WIDTH = 70


def to_table(report: DatasetReport) -> str:
    """The size of the dataset in one line, then a row per kind of finding."""
    summary = (
        f"{report.name}: {report.num_images} images, {report.num_boxes} boxes, "
        f"{report.num_classes} classes in {report.num_prompts} prompts, "
        f"{report.num_captions} captions, {report.num_questions} questions"
    )
    rows = [
        ("defect" if kind in DEFECTS else "note", kind, count, report.faults.examples[kind][0])
        for kind, count in _sorted_counts(report)
    ]
    if not rows:
        return f"{summary}\nno defects"
    headers, widths = ("", "kind", "count", "first"), [None, None, None, _MAX_EXAMPLE_WIDTH]
    return f"{summary}\n{tabulate(rows, headers=headers, maxcolwidths=widths)}"


def _sorted_counts(report: DatasetReport) -> list[tuple[str, int]]:
    """Defects before notes, in the order of :data:`DEFECTS` and :data:`NOTES`."""
    order = [*DEFECTS, *NOTES]
    return sorted(report.faults.counts.items(), key=lambda item: order.index(item[0]))


def to_json(report: DatasetReport) -> dict[str, Any]:
    meaning = DEFECTS | NOTES
    return {
        "dataset": report.name,
        "num_images": report.num_images,
        "num_boxes": report.num_boxes,
        "num_captions": report.num_captions,
        "num_questions": report.num_questions,
        "num_classes": report.num_classes,
        "num_prompts": report.num_prompts,
        "num_defects": report.num_defects,
        "findings": [
            {
                "kind": kind,
                "is_defect": kind in DEFECTS,
                "meaning": meaning[kind],
                "count": count,
                "examples": report.faults.examples[kind],
            }
            for kind, count in _sorted_counts(report)
        ],
    }
