"""The report of a fine-tuning as one HTML file without references to others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from glipv2_d2.data.coco_truth import CocoTruth, read_truth
from glipv2_d2.engine.finetune.finetune_report import OVERALL, FinetuneReport
from glipv2_d2.engine.finetune.report_figures import (
    ERROR_COLOR,
    RIGHT_COLOR,
    DrawnBox,
    confusion_figure,
    curves_figure,
    picture,
    precision_recall_figure,
)
from glipv2_d2.engine.finetune.report_numbers import (
    Curve,
    Detections,
    Match,
    confusion,
    match_images,
    precision_recall,
    read_curves,
    read_detections,
    worst_images,
)
from glipv2_d2.images import read_image

NUM_PICTURES = 12
LOSS, AP = "total_loss", "bbox/AP"


@dataclass(frozen=True)
class ReportFiles:
    """The files that a report is made of.

    Attributes:
        truth: the annotation file of the dataset.
        images: the folder of its images.
        before, after: result files in COCO's format.
        metrics: Detectron2's metrics.json of the training.
        threshold: minimum score of a detection in the confusions and pictures.
    """

    truth: Path
    images: Path
    before: Path
    after: Path
    metrics: Path
    threshold: float


def render_html(report: FinetuneReport, files: ReportFiles) -> str:
    """The report with curves, confusions and pictures."""
    truth = read_truth(str(files.truth))
    before, after = read_detections(files.before), read_detections(files.after)
    matches = match_images(truth, after, files.threshold)
    names = [str(category["name"]) for category in truth.categories]
    curves = read_curves(files.metrics, [LOSS, AP])
    worst = worst_images(matches, NUM_PICTURES)
    return _template().render(
        report=report,
        cards=[dict(zip(_CARD, row, strict=True)) for row in report.target.rows(OVERALL)],
        classes=report.target.rows(report.target.class_metrics),
        forgetting=[[c.dataset, *c.rows(["AP"])[0][1:]] for c in report.base_sets],
        loss=curves_figure({"loss": curves[LOSS]}, x_label="iteration", y_label="loss"),
        ap=curves_figure(
            _with_start(curves[AP], report), x_label="iteration", y_label="box AP", marked=True
        ),
        precision_recall=_precision_recall(truth, before, after),
        confusion=confusion_figure(confusion(truth, matches.values()), names),
        threshold=files.threshold,
        pictures=[
            _pictures(truth, image_id, after, files, matches[image_id]) for image_id in worst
        ],
        num_images=len(truth.images),
        right_color=RIGHT_COLOR,
        error_color=ERROR_COLOR,
    )


_CARD = ("metric", "before", "after", "change")


def _with_start(points: Curve, report: FinetuneReport) -> Mapping[str, Curve]:
    """The evaluations of the training; with the base's, if they are of the same images."""
    is_of_target = report.about.get("weights chosen on") == report.target.dataset
    if is_of_target and (start := report.target.before.get("AP")) is not None:
        points = [(0.0, float(start)), *points]
    return {"AP": points}


def _precision_recall(truth: CocoTruth, before: Detections, after: Detections) -> str:
    return precision_recall_figure(
        {
            "after, IoU 0.5": precision_recall(truth, after, 0.5),
            "after, IoU 0.75": precision_recall(truth, after, 0.75),
            "before, IoU 0.5": precision_recall(truth, before, 0.5),
        }
    )


def _pictures(
    truth: CocoTruth, image_id: Any, detections: Detections, files: ReportFiles, match: Match
) -> dict[str, Any]:
    """The truth and the detections of an image, with its name."""
    name = str(truth.images[image_id]["file_name"])
    about = {"name": name, "num_errors": match.num_errors}
    # The only class needs no name.
    has_names = len(truth.categories) > 1
    names = {c["id"]: str(c["name"]) if has_names else "" for c in truth.categories}
    rows = [row for row in detections.get(image_id, ()) if row["score"] >= files.threshold]
    try:
        image = read_image(files.images / name)
    except (OSError, ValueError) as error:
        return {**about, "error": str(error)}

    def draw(boxes: Iterable[dict[str, Any]]) -> str:
        drawn = []
        for box in boxes:
            score = f"{box['score']:.2f}" if "score" in box else ""
            label = f"{names[box['category_id']]} {score}".strip()
            drawn.append(DrawnBox(box["bbox"], label, match.is_right(box)))
        return picture(image, drawn)

    # The best on top. Crowds are neither found nor missed.
    truths = [a for a in truth.annotations_of.get(image_id, ()) if not a["iscrowd"]]
    return {**about, "truth": draw(truths), "detected": draw(reversed(rows))}


def _template() -> jinja2.Template:
    # Names come from the user's files.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_HTML)


_HTML = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fine-tuning: {{ report.target.dataset }}</title>
<style>
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --good: #15803d; --bad: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f4f6; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 28px; } h2 { margin: 0 0 12px; font-size: 18px; }
p { margin: 4px 0 12px; color: var(--soft); }
section { background: white; border: 1px solid var(--line); border-radius: 10px;
          padding: 20px; margin-top: 20px; overflow-x: auto; }
.cards, .pair { display: grid; gap: 20px; margin-top: 20px; }
.cards { grid-template-columns: repeat(3, 1fr); }
.pair { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pair section { margin-top: 0; }
.card { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; }
.card b { font-size: 32px; font-weight: 650; } .card span { color: var(--soft); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line); }
td, th { padding: 5px 12px 5px 0; } tr + tr td { border-top: 1px solid #f3f4f6; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.up { color: var(--good); } .down { color: var(--bad); }
td.about { word-break: break-word; }
.both img { max-height: 480px; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0 0 18px; } figcaption { color: var(--soft); font-size: 13px; margin-bottom: 4px; }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.note { border-left: 4px solid #f59e0b; }
@media (max-width: 760px) { .pair, .cards { grid-template-columns: 1fr; } }
</style>
</head>
<body><main>
{% macro change(text) -%}
{% set number = text | float(0) %}
<span class="{{ 'up' if number > 0 else 'down' if number < 0 }}">
{{- text }}</span>
{%- endmacro %}
{% macro rows(heading, values) %}
<table><tr><th>{{ heading }}</th><th class="number">before</th><th class="number">after</th>
<th class="number">change</th></tr>
{% for row in values %}
<tr><td>{{ row[0] }}</td><td class="number">{{ row[1] }}</td><td class="number">{{ row[2] }}</td>
<td class="number">{{ change(row[3]) }}</td></tr>
{% endfor %}
</table>
{% endmacro %}
<h1>Fine-tuning on {{ report.target.dataset }}</h1>
<p>Box average precision, 0 to 100, on {{ num_images }} images</p>
<div class="cards">
{% for card in cards %}
<div class="card"><span>{{ card.metric }}</span><br><b>{{ card.after }}</b>
<span>from {{ card.before }},</span> {{ change(card.change) }}</div>
{% endfor %}
</div>
{% for note in report.notes %}
<section class="note">{{ note }}</section>
{% endfor %}
<div class="pair">
<section><h2>Loss</h2><img alt="loss over iterations" src="{{ loss }}"></section>
<section><h2>Box AP on the validation images</h2>
<img alt="AP over iterations" src="{{ ap }}"></section>
</div>
<div class="pair">
<section><h2>Precision and recall</h2>
<p>Mean over the classes</p><img alt="precision over recall" src="{{ precision_recall }}"></section>
<section><h2>Confusion matrix</h2>
<p>Detections with a score of at least {{ "%.2f" | format(threshold) }}, which has the best F1 on
the validation images and is the threshold of the new model, and an IoU of at least 0.5. Missed
objects are in the column none, false detections in the row none.</p>
<img alt="confusion matrix" src="{{ confusion }}"></section>
</div>
<section><h2>The worst {{ pictures | length }} images</h2>
<p>Left the truth, right the detections with a score of at least
{{ "%.2f" | format(threshold) }}. <span style="color: {{ right_color }}">Found objects and true
detections</span>, <span style="color: {{ error_color }}">missed objects and false detections</span>
</p>
<div class="pair">
{% for item in pictures %}
<figure><figcaption>{{ item.name }}: {{ item.num_errors }}
{{ "error" if item.num_errors == 1 else "errors" }}</figcaption>
{% if item.error %}<p>{{ item.error }}</p>{% else %}
<div class="both"><img alt="truth" src="{{ item.truth }}">
<img alt="detections" src="{{ item.detected }}"></div>{% endif %}
</figure>
{% endfor %}
</div></section>
{% if classes %}
<section><h2>Box AP per class</h2>{{ rows("class", classes) }}</section>
{% endif %}
<section><h2>Forgetting: box AP of the base's own datasets</h2>
{% if forgetting %}{{ rows("dataset", forgetting) }}{% endif %}
{% if report.absent_base_sets %}
<p>Not measured, not on this machine: {{ report.absent_base_sets | join(", ") }}.</p>
{% elif not forgetting %}<p>Not measured: no dataset was selected.</p>{% endif %}
</section>
<section><h2>Training</h2><table>
{% for key, value in report.about.items() %}
<tr><td>{{ key }}</td><td class="about">{{ value }}</td></tr>
{% endfor %}
</table></section>
</main></body></html>
"""
