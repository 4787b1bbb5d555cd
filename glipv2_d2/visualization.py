"""Predictions drawn onto images by Detectron2's Visualizer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.font_manager import findfont
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

from glipv2_d2.label_placement import place_labels
from glipv2_d2.prediction import Prediction

# Small images are enlarged to this many pixels on their longer side, so that labels are legible.
_MIN_LONGER_SIDE = 640
# Larger images are shrunk: drawing takes 0.1 GB and 1 s per million pixels, and a JPEG file has at
# most 65,535 on a side.
_MAX_PIXELS = 16_000_000
_MAX_LONGER_SIDE = 65_000
# Boxes with at least this IoU count as the same box and get one label.
_SAME_BOX_IOU = 0.9
# Of labels, in points, for images of _MIN_LONGER_SIDE. It grows with the size of the image.
_LABEL_FONT_SIZE = 10.0
# Around the text of a label, in points.
_LABEL_PADDING = 2.0
_POINTS_PER_INCH = 72
# Weights of R, G and B in the brightness of a colour (ITU-R BT.601), and what counts as bright.
_LUMA = np.array([0.299, 0.587, 0.114])
_BRIGHT = 0.5
# Of the text below an image, in pixels.
_FONT_SIZE = 20


def draw_prediction(
    image: np.ndarray, prediction: Prediction, *, label_scale: float = 1.0
) -> np.ndarray:
    """Draw the boxes of a prediction with class names and scores, and its masks if it has any.

    Detections are drawn in ascending order of score, so that the best ones lie on top. Of
    detections with the same box (IoU of at least 0.9), only the best is drawn. Labels do not cover
    each other where there is room.

    Args:
        image: (H, W, 3) uint8 RGB, the image of the prediction.
        prediction: a class index has the same colour in every image.
        label_scale: factor of the size of labels, for an image that is shown smaller.

    Returns:
        (H', W', 3) uint8 RGB; H' and W' are larger than H and W for a small image, and smaller for
        one of more than 16 million pixels.
    """
    image, prediction = _shrink(image, prediction)
    scale = max(1.0, _MIN_LONGER_SIDE / max(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    mean_side = scale * math.sqrt(image.shape[0] * image.shape[1])
    font_size = _LABEL_FONT_SIZE * max(1.0, mean_side / _MIN_LONGER_SIDE)
    best_first = _deduplicate(prediction)[0]
    _draw_shapes(visualizer, prediction, best_first[::-1], line_width=font_size / 4)
    _draw_labels(visualizer, prediction, best_first, label_scale * font_size)
    return visualizer.get_output().get_image()


def _shrink(image: np.ndarray, prediction: Prediction) -> tuple[np.ndarray, Prediction]:
    """A large image and its prediction, small enough to be drawn and written."""
    height, width = image.shape[:2]
    scale = min(
        _MAX_LONGER_SIDE / max(height, width), math.sqrt(_MAX_PIXELS / (height * width)), 1.0
    )
    if scale == 1.0:
        return image, prediction
    size = max(1, round(scale * height)), max(1, round(scale * width))
    resize = ResizeTransform(height, width, *size)
    instances = Instances(size, **prediction.instances.get_fields())
    instances.pred_boxes = prediction.instances.pred_boxes.clone()
    instances.pred_boxes.scale(size[1] / width, size[0] / height)
    if instances.has("pred_masks"):
        masks = [
            resize.apply_segmentation(mask.astype(np.uint8))
            for mask in prediction.instances.pred_masks.numpy()
        ]
        instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    return resize.apply_image(image), replace(prediction, instances=instances, image_size=size)


def _deduplicate(prediction: Prediction) -> tuple[list[int], dict[int, int]]:
    """Find detections with the same box.

    Returns:
        kept: indices of the detections to draw, best first.
        kept_by_detection: for each detection the kept one with the same box, which may be itself.
    """
    boxes = prediction.instances.pred_boxes
    is_same_box = pairwise_iou(boxes, boxes) >= _SAME_BOX_IOU
    order = prediction.instances.scores.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    kept_by_detection: dict[int, int] = {}
    for index in order:
        same = next((better for better in kept if is_same_box[index, better]), index)
        if same == index:
            kept.append(index)
        kept_by_detection[index] = same
    return kept, kept_by_detection


def _draw_shapes(
    visualizer: Visualizer, prediction: Prediction, detections: Sequence[int], line_width: float
) -> None:
    """Draw masks and boxes in the given order; the line width is in points."""
    instances = prediction.instances
    boxes = instances.pred_boxes.tensor.numpy()
    classes = instances.pred_classes.tolist()
    for index in detections:
        color = _class_color(classes[index])
        if instances.has("pred_masks"):
            mask = instances.pred_masks[index].numpy()
            visualizer.draw_binary_mask(mask, color=color, alpha=0.4, area_threshold=0)
        visualizer.draw_box(boxes[index], alpha=1.0, edge_color=color)
        visualizer.output.ax.patches[-1].set_linewidth(line_width)


def _draw_labels(
    visualizer: Visualizer, prediction: Prediction, detections: Sequence[int], font_size: float
) -> None:
    """Draw class names and scores; earlier detections get the better positions."""
    output, instances = visualizer.output, prediction.instances
    names, scores = prediction.labels, instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    for index in detections:
        visualizer.draw_text(
            _escape_mathtext(f"{names[index]} {scores[index]:.0%}"),
            (0, 0),
            font_size=font_size / output.scale,
            horizontal_alignment="left",
        )
        _fill_label(output.ax.texts[-1], _class_color(classes[index]))
    boxes = instances.pred_boxes.tensor.numpy()[list(detections)].reshape(-1, 4)
    _move_labels(output, boxes)


def _fill_label(text: Text, color: np.ndarray) -> None:
    """Set the colour of a label, with black text on bright colours and white text on dark ones."""
    text.set_color("black" if color @ _LUMA >= _BRIGHT else "white")
    text.set_bbox({"facecolor": color, "edgecolor": "none", "pad": _LABEL_PADDING})


def _move_labels(output: VisImage, boxes: np.ndarray) -> None:
    """Move the texts of a figure, one per box, beside their boxes."""
    renderer = output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in output.ax.texts]
    padding = _LABEL_PADDING * output.dpi / _POINTS_PER_INCH / output.scale
    sizes = np.array([(extent.width, extent.height) for extent in extents]).reshape(-1, 2)
    labels = place_labels(boxes, sizes / output.scale + 2 * padding, (output.height, output.width))
    for text, (x0, y0, _, _) in zip(output.ax.texts, labels.tolist(), strict=True):
        text.set_position((x0 + padding, y0 + padding))


def _class_color(class_index: int) -> np.ndarray:
    """(3,) RGB, 0..1."""
    colors = colormap(rgb=True, maximum=1)
    return colors[class_index % len(colors)]


def draw_with_text(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """:func:`draw_prediction` with the text of the prediction below.

    The words of a phrase have the colour of its best box.

    Args:
        prediction: of a caption, or of a question and its answer.
    """
    drawn = draw_prediction(image, prediction)
    strip = draw_words(drawn.shape[1], colored_words(prediction))
    return np.concatenate([drawn, strip])


def colored_words(prediction: Prediction) -> list[tuple[str, tuple[int, int, int]]]:
    """The words of the text and the colour (R, G, B) of each, 0..255; black outside phrases."""
    colors = _phrase_colors(prediction)
    words = []
    for match in re.finditer(r"\S+", prediction.text or ""):
        phrases = [
            phrase
            for phrase, spans in enumerate(prediction.spans)
            if phrase in colors and any(a < match.end() and match.start() < b for a, b in spans)
        ]
        words.append((match.group(), colors[phrases[0]] if phrases else (0, 0, 0)))
    return words


def _phrase_colors(prediction: Prediction) -> dict[int, tuple[int, int, int]]:
    """For each phrase with a detection, the colour of the box that is drawn for its best one."""
    classes = prediction.instances.pred_classes.tolist()
    colors: dict[int, tuple[int, int, int]] = {}
    for index, kept in _deduplicate(prediction)[1].items():
        red, green, blue = (255 * _class_color(classes[kept])).round().astype(int).tolist()
        colors.setdefault(classes[index], (red, green, blue))
    return colors


def draw_words(width: int, words: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """Draw words in lines on white, (H, width, 3) uint8."""
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_SIZE)
    blank, line_height = font.getlength(" "), round(1.5 * _FONT_SIZE)
    positions, x, line = [], blank, 0
    for word, _ in words:
        length = font.getlength(word)
        if x > blank and x + length > width - blank:
            x, line = blank, line + 1
        positions.append((x, line * line_height + _FONT_SIZE // 4))
        x += length + blank
    strip = Image.new("RGB", (width, (line + 1) * line_height), "white")
    draw = ImageDraw.Draw(strip)
    for position, (word, color) in zip(positions, words, strict=True):
        draw.text(position, word, fill=color, font=font)
    return np.asarray(strip)


def _escape_mathtext(label: str) -> str:
    """Escape dollar signs, which delimit formulas in matplotlib."""
    return label.replace("$", r"\$")
