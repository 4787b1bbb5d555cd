"""Predictions drawn onto pictures by Detectron2's Visualizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from glipv2_d2.prediction import Prediction

# Small pictures are enlarged to this many pixels on their longer side, so that labels stay legible.
_MIN_LONGER_SIDE = 640
# Of text below a picture, in pixels.
_FONT_SIZE = 20


def draw_prediction(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Draw boxes with names and scores, and masks where there are some.

    Args:
        image: (H, W, 3) uint8, R, G, B; the image that was asked.
        prediction: what was found in it; a class has the same colour in every picture.

    Returns:
        (H', W', 3) uint8, R, G, B; H' and W' are larger than H and W for a small image.
    """
    scale = max(1.0, _MIN_LONGER_SIDE / max(image.shape[:2]))
    colors = colormap(rgb=True, maximum=1)
    visualizer = Visualizer(image, scale=scale)
    instances = prediction.instances
    drawn = visualizer.overlay_instances(
        boxes=instances.pred_boxes,
        masks=list(instances.pred_masks.numpy()) if instances.has("pred_masks") else None,
        labels=[
            _plain_text(f"{label} {score:.0%}")
            for label, score in zip(prediction.labels, instances.scores.tolist(), strict=True)
        ],
        assigned_colors=[colors[index % len(colors)] for index in instances.pred_classes.tolist()],
    )
    return drawn.get_image()


def draw_with_text(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """:func:`draw_prediction` with the prediction's text below.

    A phrase of which boxes were found has their colour.

    Args:
        prediction: of a caption, or of a question and its answer.
    """
    picture = draw_prediction(image, prediction)
    strip = _write_words(picture.shape[1], _coloured_words(prediction))
    return np.concatenate([picture, strip])


def _coloured_words(prediction: Prediction) -> list[tuple[str, tuple[int, int, int]]]:
    """The words of the text, and the colour (R, G, B) of each."""
    colors = colormap(rgb=True, maximum=255).astype(int)
    found = set(prediction.instances.pred_classes.tolist())
    words = []
    for match in re.finditer(r"\S+", prediction.text or ""):
        labels = [
            label
            for label, spans in enumerate(prediction.spans)
            if label in found and any(a < match.end() and match.start() < b for a, b in spans)
        ]
        color = tuple(colors[labels[0] % len(colors)].tolist()) if labels else (0, 0, 0)
        words.append((match.group(), color))
    return words


def _write_words(width: int, words: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """Words in lines on white, (H, width, 3) uint8."""
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_SIZE)
    blank, line_height = font.getlength(" "), round(1.5 * _FONT_SIZE)
    places, x, line = [], blank, 0
    for word, color in words:
        length = font.getlength(word)
        if x > blank and x + length > width - blank:
            x, line = blank, line + 1
        places.append(((x, line * line_height + _FONT_SIZE // 4), word, color))
        x += length + blank
    strip = Image.new("RGB", (width, (line + 1) * line_height), "white")
    pen = ImageDraw.Draw(strip)
    for place, word, color in places:
        pen.text(place, word, fill=color, font=font)
    return np.asarray(strip)


def _plain_text(label: str) -> str:
    """Matplotlib would read what stands between dollar signs as a formula."""
    return label.replace("$", r"\$")
