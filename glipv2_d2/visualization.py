"""Predictions drawn onto images, in the colours and the style of Detectron2's Visualizer.

OpenCV draws and Pillow writes the labels. The Visualizer itself draws with matplotlib, which takes
several times as long, a third of the time of the small model.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.colormap import colormap
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from glipv2_d2.label_placement import place_labels
from glipv2_d2.prediction import Prediction

# Small images are enlarged to this many pixels on their longer side, so that labels are legible.
_MIN_LONGER_SIDE = 640
# Larger images are shrunk: a JPEG file has at most 65,535 pixels on a side.
_MAX_PIXELS = 16_000_000
_MAX_LONGER_SIDE = 65_000
# Boxes with at least this IoU count as the same box and get one label.
_SAME_BOX_IOU = 0.9
# Of labels, in pixels, for images of _MIN_LONGER_SIDE. It grows with the size of the image.
_LABEL_FONT_SIZE = 14.0
# Relative to the size of a label's font: the room around its text, and the line of a box.
_LABEL_PADDING = 0.2
_LINE_WIDTH = 0.25
_MASK_OPACITY = 0.4
# Weights of R, G and B in the brightness of a colour (ITU-R BT.601), and what counts as bright.
_LUMA = (0.299, 0.587, 0.114)
_BRIGHT = 127.5
# Of the text below an image, in pixels.
_FONT_SIZE = 20

RGB = tuple[int, int, int]


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
    drawn = _enlarge(image, scale, cv2.INTER_CUBIC)
    mean_side = scale * math.sqrt(image.shape[0] * image.shape[1])
    font_size = _LABEL_FONT_SIZE * max(1.0, mean_side / _MIN_LONGER_SIDE)
    best_first = _deduplicate(prediction)[0]
    line_width = max(1, round(_LINE_WIDTH * font_size))
    _draw_shapes(drawn, prediction, best_first[::-1], scale=scale, line_width=line_width)
    return _draw_labels(drawn, prediction, best_first, scale, label_scale * font_size)


def _enlarge(image: np.ndarray, scale: float, interpolation: int) -> np.ndarray:
    """A copy with its sides times ``scale``."""
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return np.array(image, order="C")
    return cv2.resize(image, (width, height), interpolation=interpolation)


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
    drawn: np.ndarray,
    prediction: Prediction,
    detections: Sequence[int],
    *,
    scale: float,
    line_width: int,
) -> None:
    """Draw masks and boxes in the given order, in place.

    Args:
        scale: of the drawn image, relative to that of the prediction.
    """
    instances = prediction.instances
    boxes = (scale * _corners(prediction)).round().astype(int).tolist()
    classes = instances.pred_classes.tolist()
    for index in detections:
        color = _class_color(classes[index])
        if instances.has("pred_masks"):
            mask = instances.pred_masks[index].numpy().astype(np.uint8)
            _draw_mask(drawn, _enlarge(mask, scale, cv2.INTER_NEAREST), color)
        x0, y0, x1, y1 = boxes[index]
        cv2.rectangle(drawn, (x0, y0), (x1, y1), color, line_width)


def _corners(prediction: Prediction) -> np.ndarray:
    """(N, 4) XYXY, finite and near the image: OpenCV's coordinates are integers of 32 bits."""
    boxes = prediction.instances.pred_boxes.tensor.double().numpy()
    limit = 2 * max(prediction.image_size)
    return np.nan_to_num(boxes).clip(-limit, limit)


def _draw_mask(drawn: np.ndarray, mask: np.ndarray, color: RGB) -> None:
    """Tint the mask (H', W') of zeros and ones, and draw its edge, in place."""
    x, y, width, height = cv2.boundingRect(mask)
    if width > 0:
        part = drawn[y : y + height, x : x + width]
        inside = mask[y : y + height, x : x + width, None] > 0
        plain = np.full_like(part, color)
        tinted = cv2.addWeighted(part, 1 - _MASK_OPACITY, plain, _MASK_OPACITY, 0)
        np.copyto(part, tinted, where=inside)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, color, 1, cv2.LINE_AA)


def _draw_labels(
    drawn: np.ndarray,
    prediction: Prediction,
    detections: Sequence[int],
    scale: float,
    font_size: float,
) -> np.ndarray:
    """Draw class names and scores; earlier detections get the better positions."""
    instances, names = prediction.instances, prediction.labels
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    font = _font(max(1, round(font_size)))
    padding = _LABEL_PADDING * font_size
    # A phrase of a caption may have line breaks.
    texts = [f"{' '.join(names[index].split())} {scores[index]:.0%}" for index in detections]
    text_height = sum(font.getmetrics())
    sizes = np.array([(font.getlength(text), text_height) for text in texts]).reshape(-1, 2)
    boxes = _corners(prediction)[list(detections)].reshape(-1, 4)
    labels = place_labels(boxes, (sizes + 2 * padding) / scale, prediction.image_size)
    picture = Image.fromarray(drawn)
    draw = ImageDraw.Draw(picture)
    for index, text, label in zip(detections, texts, (scale * labels).tolist(), strict=True):
        color = _class_color(classes[index])
        draw.rectangle(label, fill=color)
        is_bright = sum(w * c for w, c in zip(_LUMA, color, strict=True)) >= _BRIGHT
        position = (label[0] + padding, label[1] + padding)
        draw.text(position, text, fill="black" if is_bright else "white", font=font)
    return np.array(picture)


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def _class_color(class_index: int) -> RGB:
    """R, G, B, 0..255."""
    colors = colormap(rgb=True, maximum=255)
    red, green, blue = colors[class_index % len(colors)].round().astype(int).tolist()
    return red, green, blue


def draw_with_text(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """:func:`draw_prediction` with the text of the prediction below.

    The words of a phrase have the colour of its best box.

    Args:
        prediction: of a caption, or of a question and its answer.
    """
    drawn = draw_prediction(image, prediction)
    strip = draw_words(drawn.shape[1], colored_words(prediction))
    return np.concatenate([drawn, strip])


def colored_words(prediction: Prediction) -> list[tuple[str, RGB]]:
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


def _phrase_colors(prediction: Prediction) -> dict[int, RGB]:
    """For each phrase with a detection, the colour of the box that is drawn for its best one."""
    classes = prediction.instances.pred_classes.tolist()
    colors: dict[int, RGB] = {}
    for index, kept in _deduplicate(prediction)[1].items():
        colors.setdefault(classes[index], _class_color(classes[kept]))
    return colors


def draw_words(width: int, words: Sequence[tuple[str, RGB]]) -> np.ndarray:
    """Draw words in lines on white, (H, width, 3) uint8."""
    font = _font(_FONT_SIZE)
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
