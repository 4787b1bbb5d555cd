"""Drawings of training samples: the image with its boxes above the prompt with its spans."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw, ImageFont

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.record_tasks import is_text_only
from glipv2_d2.data.sanitize import caption_labels, to_xyxy
from glipv2_d2.images import read_image
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import caption_prompt, class_prompt

logger = logging.getLogger(__name__)

MIN_WIDTH = 480
"""Smaller images are enlarged to this width in pixels, to leave room for the prompt."""

MAX_ENLARGED_SIDE = 4096
"""The enlargement ends at this side in pixels: that of a strip."""

MAX_UNREADABLE = 10
"""More unreadable images in a row indicate a wrong folder."""

FONT_SIZE = 15
MARGIN = 8
NEGATIVE_COLOR = (225, 225, 225)

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        name: stem of the image file.
        image: (H, W, 3) uint8, R, G, B.
        boxes: (n, 4) XYXY in pixels of ``image``.
        labels: (n,) the label of each box in ``prompt``.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    labels: list[int]
    prompt: Prompt


def stored_samples(cfg: CfgNode) -> Iterator[Sample]:
    """The records of ``DATASETS.TRAIN`` without transforms; prompts without negatives.

    Images that cannot be read are logged and skipped.

    Raises:
        ValueError: many images in a row cannot be read.
    """
    num_unreadable = 0
    for name in cfg.DATASETS.TRAIN:
        records = load_dataset(name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        class_names = MetadataCatalog.get(name).get("thing_classes") or []
        for record in records:
            try:
                image = read_image(record["file_name"])
            except (FileNotFoundError, ValueError) as error:
                num_unreadable += 1
                if num_unreadable >= MAX_UNREADABLE:
                    raise ValueError(
                        f"{MAX_UNREADABLE} images in a row cannot be read; the last: {error}"
                    ) from error
                logger.warning("record skipped: %s", error)
                continue
            num_unreadable = 0
            yield _stored_sample(record, image, class_names, cfg.MODEL.PROMPT.SEPARATOR)


def _stored_sample(
    record: dict[str, Any], image: np.ndarray, class_names: list[str], separator: str
) -> Sample:
    if is_text_only(record):
        return _text_sample(record, image)
    annotations = record["annotations"]
    classes: list[int | None]
    if fields.CAPTION in record:
        phrases, classes = caption_labels(record)
        prompt = caption_prompt(record[fields.CAPTION], phrases)
    else:
        classes = [annotation["category_id"] for annotation in annotations]
        names = record.get(fields.CLASSES) or class_names
        # An image without boxes has the prompt of all classes.
        shown = sorted({a["category_id"] for a in annotations}) or list(range(len(names)))
        prompt = class_prompt([names[c] for c in shown], separator=separator, classes=shown)
    boxes = [to_xyxy(a) for a, c in zip(annotations, classes, strict=True) if c is not None]
    return Sample(
        name=Path(record["file_name"]).stem,
        image=image,
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        labels=[prompt.classes.index(c) for c in classes if c is not None],
        prompt=prompt,
    )


def loader_samples(cfg: CfgNode) -> Iterator[Sample]:
    """An infinite stream of samples from the training loader, after transforms and sampling."""
    for x in itertools.chain.from_iterable(build_train_loader(cfg)):
        image = convert_image_to_rgb(x[fields.IMAGE].permute(1, 2, 0), cfg.INPUT.FORMAT)
        if fields.INSTANCES not in x:
            yield _text_sample(x, image)
            continue
        instances, prompt = x[fields.INSTANCES], x[fields.PROMPT]
        yield Sample(
            name=Path(x["file_name"]).stem,
            image=image,
            boxes=instances.gt_boxes.tensor.numpy(),
            labels=[prompt.classes.index(c) for c in instances.gt_classes.tolist()],
            prompt=prompt,
        )


def _text_sample(record: dict[str, Any], image: np.ndarray) -> Sample:
    """A sample without boxes: its question and answers, or its captions."""
    answers = record.get(fields.ANSWERS, {}).items()
    texts = [
        *([record[fields.QUESTION]] if fields.QUESTION in record else []),
        *(f"{answer} ({score:.1f})" for answer, score in answers),
        *record.get(fields.TARGET_CAPTIONS, ()),
    ]
    prompt = Prompt(" / ".join(texts), (), ())
    return Sample(Path(record["file_name"]).stem, image, np.zeros((0, 4)), [], prompt)


def draw_sample(sample: Sample) -> Image.Image:
    """Draw the image with its boxes, and below it the prompt with spans in the boxes' colours."""
    colors = colormap(rgb=True, maximum=1)
    phrases = sample.prompt.phrases
    height, width = sample.image.shape[:2]
    scale = max(1.0, min(MIN_WIDTH / width, MAX_ENLARGED_SIDE / height))
    visualizer = Visualizer(sample.image, scale=scale)
    drawing = visualizer.overlay_instances(
        boxes=sample.boxes,
        # Matplotlib parses text between dollar signs as a formula.
        labels=[phrases[label].replace("$", r"\$") for label in sample.labels],
        assigned_colors=[colors[label % len(colors)] for label in sample.labels],
    )
    image = Image.fromarray(drawing.get_image())
    text = draw_prompt(sample.prompt, set(sample.labels), image.width)
    page = Image.new("RGB", (image.width, image.height + text.height), "white")
    page.paste(image, (0, 0))
    page.paste(text, (0, image.height))
    return page


def draw_prompt(prompt: Prompt, positives: set[int], width: int) -> Image.Image:
    """Draw the prompt, wrapped to ``width`` pixels, each span on the colour of its label.

    Args:
        positives: labels that have a box; the spans of other labels are grey.
    """
    font = ImageFont.load_default(FONT_SIZE)
    line_height = FONT_SIZE + 6
    x, y = float(MARGIN), MARGIN
    pieces = []
    for start, end in itertools.pairwise(_boundaries(prompt)):
        piece = prompt.text[start:end].replace("\n", " ")
        length = font.getlength(piece)
        if x > MARGIN and x + length > width - MARGIN:
            x, y = MARGIN, y + line_height
        pieces.append((x, y, length, piece, span_color(prompt, start, positives)))
        x += length
    page = Image.new("RGB", (width, y + line_height + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for x, y, length, piece, color in pieces:
        if color is not None:
            draw.rectangle((x, y, x + length, y + FONT_SIZE + 3), fill=color)
        draw.text((x, y), piece, fill="black", font=font)
    return page


def _boundaries(prompt: Prompt) -> list[int]:
    """Character positions between which the background colour is constant and lines may break."""
    boundaries = {position for spans in prompt.spans for span in spans for position in span}
    boundaries |= {match.start() for match in re.finditer(r"\S+", prompt.text)}
    return sorted(boundaries | {0, len(prompt.text)})


def span_color(prompt: Prompt, position: int, positives: set[int]) -> RGB | None:
    """Background colour of a character: that of the first label whose spans contain it.

    The colours are light, because the text is black. None outside of all spans.
    """
    colors = colormap(rgb=True, maximum=255)
    for label, spans in enumerate(prompt.spans):
        if any(start <= position < end for start, end in spans):
            if label not in positives:
                return NEGATIVE_COLOR
            r, g, b = (int(255 - (255 - c) / 2) for c in colors[label % len(colors)])
            return r, g, b
    return None
