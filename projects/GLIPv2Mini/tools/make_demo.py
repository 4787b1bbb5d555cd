#!/usr/bin/env python
"""Boxes, masks, answers and captions of glipv2-mini for photos; ``make demo`` runs this.

Each task has one overview of all pictures: boxes.jpg (class names with boxes and masks),
answers.jpg (questions) and captions.jpg (captions with the boxes of their phrases). results.json
has the numbers, and the terminal a table for each picture. A model without heads for answers or
captions gets no overview of them.

The photos are those of scikit-image, scikit-learn and matplotlib, and two scenes of them are
composed in place: nothing is downloaded. Every list of class names includes names of absent
objects.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glipv2_d2.batch_prediction import write_jpeg, write_json
from glipv2_d2.images import read_image
from glipv2_d2.prediction import Prediction, TaskResults
from glipv2_d2.predictor import Predictor
from glipv2_d2.visualization import colored_words, draw_prediction, draw_words

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
CONFIG = PROJECT / "configs" / "glipv2_mini.yaml"
WEIGHTS = PROJECT / "glipv2_mini" / "assets" / "glipv2_mini.pth"

TABLE_ROWS = 10
COLUMNS = 3
TILE_SIZE = (480, 360)  # (width, height) of the image in a tile of an overview
MARGIN = 12
# Of draw_prediction's labels in a tile, relative to their size in an image of 640 pixels.
LABEL_SIZE = 1.2
BLACK, GRAY, BLUE = (0, 0, 0), (110, 110, 110), (20, 80, 190)


@dataclass(frozen=True)
class Picture:
    """An image with its prompts.

    Attributes:
        title: shown above it.
        image: (H, W, 3) uint8 RGB.
        names: class names to detect.
        questions: questions to answer.
    """

    title: str
    image: np.ndarray
    names: Sequence[str]
    questions: Sequence[str]


# File in an installed package -> class names, those of present objects first, and questions.
PHOTOS: dict[str, tuple[list[str], list[str]]] = {
    "skimage/data/chelsea.png": (
        ["cat", "dog", "rabbit", "tiger", "teapot", "bicycle"],
        ["what animal is this?", "is there a dog in the picture?", "how many cats are there?"],
    ),
    "skimage/data/coffee.png": (
        ["coffee cup", "spoon", "saucer", "banana", "fish", "clock"],
        ["what is in the picture?", "is there a spoon in the picture?", "what color is the cup?"],
    ),
    "skimage/data/astronaut.png": (
        ["astronaut", "helmet", "space shuttle", "flag", "horse", "pizza"],
        ["is there a person in the picture?", "how many people are there?", "is there a horse?"],
    ),
    "skimage/data/motorcycle_left.png": (
        ["motorcycle", "bench", "wheel", "dog", "bus", "umbrella"],
        ["what color is the motorcycle?", "how many motorcycles are there?", "is there a bus?"],
    ),
    "skimage/data/rocket.jpg": (
        ["rocket", "tower", "airplane", "sailboat", "giraffe"],
        ["is there a rocket in the picture?", "is there a giraffe?"],
    ),
    "skimage/data/camera.png": (
        ["man", "camera", "tripod", "tower", "cow", "guitar"],
        ["is there a person in the picture?", "is there a cow?", "how many people are there?"],
    ),
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": (
        ["woman", "tie", "hat", "glasses", "flag", "dog", "guitar"],
        ["is there a tie in the picture?", "how many people are there?", "is there a dog?"],
    ),
    "sklearn/datasets/images/flower.jpg": (
        ["flower", "butterfly", "bird", "mushroom", "car"],
        ["what is this?", "what color is the flower?", "is there a bird in the picture?"],
    ),
    "sklearn/datasets/images/china.jpg": (
        ["temple", "tree", "lake", "lighthouse", "car", "elephant"],
        ["is there a temple in the picture?", "is there a car?"],
    ),
    "skimage/data/coins.png": (
        ["coin", "key", "apple", "person", "button"],
        ["what are these?", "is there an apple in the picture?"],
    ),
}
# Title -> files of packages side by side, class names, and questions.
SCENES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "scene 1": (
        ["skimage/data/chelsea.png", "skimage/data/coffee.png"],
        ["cat", "coffee cup", "spoon", "dog", "clock"],
        ["is there a cat in the picture?", "what animal is this?"],
    ),
    "scene 2": (
        ["skimage/data/motorcycle_left.png", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"],
        ["motorcycle", "woman", "tie", "horse", "umbrella"],
        ["is there a motorcycle?", "is there a horse in the picture?"],
    ),
}


def photos() -> Iterator[Picture]:
    for file, (names, questions) in PHOTOS.items():
        yield Picture(Path(file).name, read_photo(file), names, questions)


def scenes() -> Iterator[Picture]:
    """Photos side by side, of one height."""
    for title, (files, names, questions) in SCENES.items():
        parts = [Image.fromarray(read_photo(file)) for file in files]
        height = min(part.height for part in parts)
        resized = [part.resize((part.width * height // part.height, height)) for part in parts]
        scene = np.concatenate([np.asarray(part) for part in resized], axis=1)
        yield Picture(title, scene, names, questions)


def read_photo(file: str) -> np.ndarray:
    """(H, W, 3) uint8, R, G, B: a photo that an installed package has, "package/path"."""
    package, _, path = file.partition("/")
    # Not importlib.resources, which imports the package.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{file}: the package {package} is not installed; pip install -e '.[mini]'"
        )
    return read_image(Path(spec.submodule_search_locations[0]) / path)


def predict(predictor: Predictor, picture: Picture, threshold: float | None) -> TaskResults:
    """What is shown of a picture; no answers or caption if the model has no head for them."""
    tasks = predictor.model.text_tasks
    results = predictor.run_tasks(
        picture.image,
        classes=picture.names,
        questions=picture.questions if tasks is not None and tasks.answer is not None else (),
        describe=tasks is not None and tasks.caption is not None,
        ground_caption=True,
        threshold="model" if threshold is None else threshold,
        channel_order="RGB",
    )
    overlap = predictor.cfg.MODEL.GROUNDING.NMS_THRESH

    def select(prediction: Prediction) -> Prediction:
        return prediction.one_name_per_box(overlap).without_parts()

    caption = results.caption
    if caption is not None and caption.grounding is not None:
        caption = replace(caption, grounding=select(caption.grounding))
    return replace(results, detections=select(results.detections), caption=caption)


def make_table(picture: Picture, results: TaskResults) -> Table:
    """At most :data:`TABLE_ROWS` rows: the best boxes, the answers and the caption."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    rows = results.detections.to_coco(picture.title)
    room = TABLE_ROWS - len(results.answers) - (results.caption is not None)
    shown = rows if len(rows) <= room else rows[: room - 1]
    for row in shown:
        x, y, width, height = (f"{value:.0f}" for value in row["bbox"])
        # Text, because rich would parse [brackets] as markup.
        name = Text(f"{row['category_name']} at {x}, {y}, size {width} x {height}")
        table.add_row("box", f"{row['score']:.0%}", name)
    if len(shown) < len(rows):
        table.add_row("", "", f"and {len(rows) - len(shown)} more")
    for answer in results.answers:
        table.add_row("answer", f"{answer.score:.0%}", Text(f"{answer.question} {answer.answer}"))
    if results.caption is not None:
        table.add_row("caption", "", Text(results.caption.caption))
    return table


def to_json(picture: Picture, results: TaskResults) -> dict[str, Any]:
    content: dict[str, Any] = {
        "picture": picture.title,
        "class_names": list(picture.names),
        "detections": results.detections.to_coco(picture.title),
        "answers": [
            {"question": answer.question, "answer": answer.answer, "score": answer.score}
            for answer in results.answers
        ],
    }
    if results.caption is not None and results.caption.grounding is not None:
        content["caption"] = results.caption.caption
        content["caption_detections"] = results.caption.grounding.to_coco(picture.title)
    return content


def make_tiles(picture: Picture, results: TaskResults) -> dict[str, np.ndarray]:
    """The tile of each overview: title, image and text."""
    tiles = {"boxes": make_tile(picture, results.detections, [])}
    if results.answers:
        lines = [
            [*((word, BLACK) for word in answer.question.split()), (answer.answer, BLUE)]
            for answer in results.answers
        ]
        tiles["answers"] = make_tile(picture, None, lines)
    if results.caption is not None and results.caption.grounding is not None:
        grounding = results.caption.grounding
        tiles["captions"] = make_tile(picture, grounding, [colored_words(grounding)])
    return tiles


def make_tile(
    picture: Picture,
    prediction: Prediction | None,
    lines: Sequence[Sequence[tuple[str, tuple[int, int, int]]]],
) -> np.ndarray:
    """(H, TILE_SIZE[0], 3) RGB: title, image and wrapped lines.

    Args:
        prediction: drawn onto the image; None: nothing.
        lines: (word, color) of each word.
    """
    image = picture.image
    if prediction is not None:
        # Labels of the same size in all tiles: the drawn image is at least 640 pixels long.
        height, width = image.shape[:2]
        enlarged = max(1.0, 640 / max(height, width))
        shown = min(TILE_SIZE[0] / width, TILE_SIZE[1] / height)
        image = draw_prediction(image, prediction, label_scale=LABEL_SIZE * enlarged / shown)
    tile = ImageOps.pad(
        Image.fromarray(image), TILE_SIZE, Image.Resampling.LANCZOS, color=(255, 255, 255)
    )
    width = TILE_SIZE[0]
    title = draw_words(width, [(word, GRAY) for word in picture.title.split()])
    return np.concatenate([title, np.asarray(tile), *(draw_words(width, line) for line in lines)])


def make_overview(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles of one width in a grid of :data:`COLUMNS` columns, (H, W, 3) RGB."""
    height, width = max(len(tile) for tile in tiles) + MARGIN, TILE_SIZE[0] + MARGIN
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * height + MARGIN, COLUMNS * width + MARGIN, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // COLUMNS * height + MARGIN, index % COLUMNS * width + MARGIN
        sheet[top : top + len(tile), left : left + TILE_SIZE[0]] = tile
    return sheet


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    help_default = "default: %(default)s"
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help=help_default)
    parser.add_argument("--weights", default=WEIGHTS, metavar="FILE", help=help_default)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "demo", metavar="DIR", help=help_default
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="minimum score of a box, default: the model's",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    # Of Detectron2's layers, about tracing.
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    console = Console()
    # A config with CUDA where there is none is a warning.
    device = [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
    predictor = Predictor(args.config_file, args.weights, opts=device)
    rows: list[dict[str, Any]] = []
    tiles: dict[str, list[np.ndarray]] = {}
    for picture in (*photos(), *scenes()):
        results = predict(predictor, picture, args.threshold)
        height, width = picture.image.shape[:2]
        names = ", ".join(picture.names)
        console.print(Text(f"{picture.title} ({width} x {height}): {names}", style="bold"))
        console.print(make_table(picture, results))
        rows.append(to_json(picture, results))
        for task, tile in make_tiles(picture, results).items():
            tiles.setdefault(task, []).append(tile)
    write_json(rows, args.output / "results.json")
    for task, of_task in tiles.items():
        write_jpeg(make_overview(of_task), args.output / f"{task}.jpg")
    files = ", ".join([*(f"{task}.jpg" for task in tiles), "results.json"])
    console.print(Text(f"written to {args.output}: {files}"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
