"""Figures of a report as data URIs: diagrams in SVG, pictures in JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from glipv2_d2.engine.finetune.report_numbers import Curve

COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")
_GRID = "#e5e7eb"
_TEXT = "#374151"
MAX_CONFUSION_CLASSES = 40
# Dark, for white text; blue and orange also for the colour-blind.
RIGHT_COLOR, ERROR_COLOR = "#1d4ed8", "#c2410c"
MAX_LABELS = 12
"""Of a picture; the boxes of more objects have none."""
_PICTURE_SIDE = 480
_JPEG_QUALITY = 80
_LABEL_SIZE = 13


def curves_figure(
    curves: Mapping[str, Curve], *, x_label: str, y_label: str, marked: bool = False
) -> str:
    """Lines over a common x axis.

    Args:
        marked: whether each value has a dot.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color in zip(curves.items(), COLORS, strict=False):
        xs, ys = zip(*points, strict=True) if points else ((), ())
        has_dots = marked or len(points) == 1
        axes.plot(xs, ys, color=color, label=name, marker="o" if has_dots else None, markersize=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=_TEXT)
    _style(axes)
    return _svg(figure)


def precision_recall_figure(curves: Mapping[str, Curve]) -> str:
    """Precision over recall, both 0 to 1."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color in zip(curves.items(), COLORS, strict=False):
        xs, ys = zip(*points, strict=True) if points else ((), ())
        axes.plot(xs, ys, color=color, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, labelcolor=_TEXT)
    _style(axes)
    return _svg(figure)


def confusion_figure(counts: np.ndarray, names: Sequence[str]) -> str:
    """Shares of the truths of each class, as colours; numbers if there is room.

    Args:
        counts: of :func:`~glipv2_d2.engine.finetune.report_numbers.confusion`.
        names: of the classes; of more than 40, those with the most boxes are shown.
    """
    order = np.argsort(-counts[:-1].sum(axis=1), kind="stable")[:MAX_CONFUSION_CLASSES]
    kept = [*np.sort(order).tolist(), len(names)]
    counts = counts[np.ix_(kept, kept)]
    labels = [*(_shorten(names[i]) for i in kept[:-1]), "none"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.2, 0.26 * len(labels) + 1.6)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="detected", ylabel="truth")
    for y, x in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[y, x] > 0.5 else _TEXT
        axes.text(x, y, str(counts[y, x]), ha="center", va="center", fontsize=7, color=color)
    axes.tick_params(colors=_TEXT, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure)


@dataclass(frozen=True)
class DrawnBox:
    """A box of a picture.

    Attributes:
        xywh: in pixels.
        is_right: found or true; drawn in another color than errors.
    """

    xywh: Sequence[float]
    label: str
    is_right: bool


def picture(image: np.ndarray, boxes: Sequence[DrawnBox]) -> str:
    """An image (H, W, 3), uint8 RGB, with boxes; labels only where they do not hide the image."""
    drawn = Image.fromarray(image)
    scale = _PICTURE_SIDE / max(drawn.size)
    drawn = drawn.resize([max(1, round(scale * side)) for side in drawn.size])
    canvas, font = ImageDraw.Draw(drawn), ImageFont.load_default(_LABEL_SIZE)
    for box in boxes:
        x, y, w, h = box.xywh
        corners = [scale * v for v in (x, y, x + w, y + h)]
        color = RIGHT_COLOR if box.is_right else ERROR_COLOR
        canvas.rectangle(corners, outline=color, width=2)
        label = _shorten(box.label)
        if not label or len(boxes) > MAX_LABELS:
            continue
        left, top = corners[0], max(0.0, corners[1] - _LABEL_SIZE - 3)
        area = canvas.textbbox((left + 2, top), label, font=font)
        canvas.rectangle((area[0] - 2, area[1] - 1, area[2] + 2, area[3] + 1), fill=color)
        canvas.text((left + 2, top), label, fill="white", font=font)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return _data_uri("image/jpeg", buffer.getvalue())


def _style(axes: Any) -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shorten(name: str, limit: int = 24) -> str:
    # matplotlib reads a pair of $ as a formula.
    name = "".join(c if c.isprintable() else "?" for c in name).replace("$", "\uff04")
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
