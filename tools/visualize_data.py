#!/usr/bin/env python
"""Pictures of what a config feeds the model: image, prompt, the spans that name things, boxes;
questions with their answers, captions.

    python tools/visualize_data.py --config-file configs/... --output DIR [--num 20]
        [--source annotation | dataloader] [KEY VALUE ...]

``annotation`` shows the data set as it is stored, ``dataloader`` what comes out of the mapper: the
sampled prompt, the resized and flipped image. Names that are asked and not in the image are grey.
"""

from __future__ import annotations

import argparse
import itertools
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
from tqdm import tqdm

from glipv2_d2.data.build import build_train_loader, load_dataset
from glipv2_d2.data.mapper import read_image
from glipv2_d2.data.sanitize import caption_labels, to_xyxy
from glipv2_d2.data.text_tasks import asks_words_only
from glipv2_d2.engine.setup import load_config
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import caption_prompt, class_prompt

# Pictures are at least so wide, in pixels: the text below them wants room.
MIN_WIDTH = 480
FONT_SIZE = 15
MARGIN = 8
NEGATIVE_COLOR = (225, 225, 225)


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        name: of the file to write, without its suffix.
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
    """Of the training data sets as they are stored, their prompts without negatives."""
    for name in cfg.DATASETS.TRAIN:
        records = load_dataset(name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        names = MetadataCatalog.get(name).get("thing_classes") or []
        for record in records:
            yield _stored_sample(record, names, cfg.MODEL.PROMPT.SEPARATOR)


def _stored_sample(record: dict[str, Any], names: list[str], separator: str) -> Sample:
    if asks_words_only(record):
        return words_sample(record, read_image(record["file_name"], "RGB"))
    annotations = record["annotations"]
    classes: list[int | None]
    if fields.CAPTION in record:
        phrases, classes = caption_labels(record)
        prompt = caption_prompt(record[fields.CAPTION], phrases)
    else:
        classes = [annotation["category_id"] for annotation in annotations]
        names = record.get(fields.CLASSES) or names
        # An image with nothing in it still has a prompt: all names.
        asked = sorted({a["category_id"] for a in annotations}) or list(range(len(names)))
        prompt = class_prompt([names[c] for c in asked], separator=separator, classes=asked)
    boxes = [to_xyxy(a) for a, c in zip(annotations, classes, strict=True) if c is not None]
    return Sample(
        name=Path(record["file_name"]).stem,
        image=read_image(record["file_name"], "RGB"),
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        labels=[prompt.classes.index(c) for c in classes if c is not None],
        prompt=prompt,
    )


def loaded_samples(cfg: CfgNode) -> Iterator[Sample]:
    """Of the training loader, without end."""
    for x in itertools.chain.from_iterable(build_train_loader(cfg)):
        image = convert_image_to_rgb(x[fields.IMAGE].permute(1, 2, 0), cfg.INPUT.FORMAT)
        if fields.INSTANCES not in x:
            yield words_sample(x, image)
            continue
        instances, prompt = x[fields.INSTANCES], x[fields.PROMPT]
        yield Sample(
            name=Path(x["file_name"]).stem,
            image=image,
            boxes=instances.gt_boxes.tensor.numpy(),
            labels=[prompt.classes.index(c) for c in instances.gt_classes.tolist()],
            prompt=prompt,
        )


def words_sample(record: dict[str, Any], image: np.ndarray) -> Sample:
    """An image with its question and answers, or its captions, in place of boxes."""
    answers = record.get(fields.ANSWERS, {}).items()
    texts = [
        *([record[fields.QUESTION]] if fields.QUESTION in record else []),
        *(f"{answer} ({score:.1f})" for answer, score in answers),
        *record.get(fields.TARGET_CAPTIONS, ()),
    ]
    prompt = Prompt(" / ".join(texts), (), ())
    return Sample(Path(record["file_name"]).stem, image, np.zeros((0, 4)), [], prompt)


def draw(sample: Sample) -> Image.Image:
    """The image with its boxes, above its prompt with the spans in the colours of the boxes."""
    colors = colormap(rgb=True, maximum=1)
    phrases = sample.prompt.phrases
    visualizer = Visualizer(sample.image, scale=max(1.0, MIN_WIDTH / sample.image.shape[1]))
    drawn = visualizer.overlay_instances(
        boxes=sample.boxes,
        # Matplotlib would read what stands between dollar signs as a formula.
        labels=[phrases[label].replace("$", r"\$") for label in sample.labels],
        assigned_colors=[colors[label % len(colors)] for label in sample.labels],
    )
    picture = Image.fromarray(drawn.get_image())
    text = draw_prompt(sample.prompt, set(sample.labels), picture.width)
    page = Image.new("RGB", (picture.width, picture.height + text.height), "white")
    page.paste(picture, (0, 0))
    page.paste(text, (0, picture.height))
    return page


def draw_prompt(prompt: Prompt, present: set[int], width: int) -> Image.Image:
    """The text, wrapped to ``width`` pixels, each span on the colour of its label.

    Args:
        present: labels that have a box.
    """
    font = ImageFont.load_default(FONT_SIZE)
    line_height = FONT_SIZE + 6
    # From one border of a span or word to the next, the text has one colour.
    borders = {border for spans in prompt.spans for span in spans for border in span}
    borders |= {match.start() for match in re.finditer(r"\S+", prompt.text)}
    cuts = sorted(borders | {0, len(prompt.text)})
    x, y = float(MARGIN), MARGIN
    pieces = []
    for start, end in itertools.pairwise(cuts):
        piece = prompt.text[start:end].replace("\n", " ")
        length = font.getlength(piece)
        if x > MARGIN and x + length > width - MARGIN:
            x, y = MARGIN, y + line_height
        pieces.append((x, y, length, piece, _color_at(prompt, start, present)))
        x += length
    page = Image.new("RGB", (width, y + line_height + MARGIN), "white")
    brush = ImageDraw.Draw(page)
    for x, y, length, piece, color in pieces:
        if color is not None:
            brush.rectangle((x, y, x + length, y + FONT_SIZE + 3), fill=color)
        brush.text((x, y), piece, fill="black", font=font)
    return page


def _color_at(prompt: Prompt, position: int, present: set[int]) -> tuple[int, int, int] | None:
    """Of the first label whose spans cover a character: light, as black text stands on it."""
    colors = colormap(rgb=True, maximum=255)
    for label, spans in enumerate(prompt.spans):
        if any(start <= position < end for start, end in spans):
            if label not in present:
                return NEGATIVE_COLOR
            r, g, b = (int(255 - (255 - c) / 2) for c in colors[label % len(colors)])
            return r, g, b
    return None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--source", choices=("annotation", "dataloader"), default="dataloader")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--num", type=int, default=20, help="pictures to write (default: 20)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values in turn")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    # Pictures need few images: no loader processes.
    cfg = load_config(args.config_file, ["DATALOADER.NUM_WORKERS", 0, *args.opts])
    samples = {"annotation": stored_samples, "dataloader": loaded_samples}[args.source](cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(tqdm(itertools.islice(samples, args.num), total=args.num)):
        draw(sample).save(args.output / f"{number:04d}_{sample.name}.jpg")
    print(f"pictures are in {args.output}")


if __name__ == "__main__":
    main()
