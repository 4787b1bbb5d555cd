#!/usr/bin/env python
"""Detections, answers and captions of glipv2-mini for photos and scenes; ``make demo`` runs this.

Every image gets boxes and masks. A model with heads for them (--config-file, --weights) also
answers a question about the image and generates a caption, both with the boxes of their phrases.

The photos are scikit-image's; nothing is downloaded. Scenes of drawn shapes are composed in place;
scenes of photo cut-outs are included if datasets/prepare_stamps.py has been run. Every list of
class names includes names of absent objects.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger
from PIL import Image, ImageOps
from rich.console import Console
from rich.text import Text

from glipv2_d2.batch_prediction import FilePrompts, predict_files, write_jpeg, write_json
from glipv2_d2.data.drawn import write_drawn
from glipv2_d2.images import open_image
from glipv2_d2.predictor import Predictor
from glipv2_mini.data.augmentation import augmented_questions
from glipv2_mini.data.scene_text import with_article

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
CONFIG = PROJECT / "configs" / "glipv2_mini_joint.yaml"
WEIGHTS = PROJECT / "glipv2_mini" / "assets" / "glipv2_mini_joint.pth"

# File of scikit-image -> class names, those of present objects first.
PHOTOS = {
    "chelsea.png": ["cat", "dog", "rabbit", "teapot", "bicycle"],
    "coffee.png": ["coffee cup", "spoon", "banana", "fish", "clock"],
    "rocket.jpg": ["rocket", "airplane", "sailboat", "giraffe"],
    "astronaut.png": ["astronaut", "flag", "horse", "pizza"],
    "camera.png": ["camera", "tower", "cow", "guitar"],
    "coins.png": ["coin", "button", "apple", "key"],
}
SCENES_PER_KIND = 3
OTHER_NAMES_PER_SCENE = 5
TILE_SIZE = (480, 360)  # width, height in the overview


@dataclass(frozen=True)
class Example:
    """An image with its prompts.

    Attributes:
        image: the file.
        names: class names to detect.
        question: a question about the image.
    """

    image: Path
    names: list[str]
    question: str


def photo_examples() -> list[Example]:
    folder = Path(str(importlib.resources.files("skimage"))) / "data"
    return [
        Example(folder / file, names, presence_question(names)) for file, names in PHOTOS.items()
    ]


def scene_examples(annotation_file: Path) -> list[Example]:
    """The first scenes of a COCO file, with their class names and some absent ones.

    The question is one that a class name answers, if the scene has one.
    """
    coco = json.loads(annotation_file.read_text(encoding="utf-8"))
    name_of_id = {category["id"]: category["name"] for category in coco["categories"]}
    questions_of = augmented_questions(coco)
    rng = random.Random(0)
    examples = []
    for image in coco["images"][:SCENES_PER_KIND]:
        ids = [a["category_id"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        names = list(dict.fromkeys(name_of_id[i] for i in ids))
        others = sorted(set(name_of_id.values()) - set(names))
        names += rng.sample(others, min(OTHER_NAMES_PER_SCENE, len(others)))
        open_questions = [text for text, _ in questions_of[image["id"]] if text.startswith("what")]
        question = [*open_questions, presence_question(names)][0]
        file = annotation_file.with_suffix("") / image["file_name"]
        examples.append(Example(file, names, question))
    return examples


def presence_question(names: Sequence[str]) -> str:
    return f"is there {with_article(names[0])} in the picture?"


def make_overview(files: Sequence[Path], columns: int = 3) -> np.ndarray:
    """All images in a grid, (H, W, 3) RGB."""
    width, height = TILE_SIZE
    rows = -(-len(files) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, file in enumerate(files):
        with open_image(file) as image:
            tile = ImageOps.pad(image.convert("RGB"), TILE_SIZE, color="white")
        sheet.paste(tile, (index % columns * width, index // columns * height))
    return np.asarray(sheet)


def collect_examples(scratch: Path) -> list[Example]:
    examples = photo_examples()
    examples += scene_examples(
        write_drawn(scratch, split="drawn", num_images=SCENES_PER_KIND, size=320, seed=0)
    )
    stamps = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")) / "stamps"
    # "seen" has the classes of training, "novel" has others.
    for split in ("seen", "novel"):
        if (stamps / f"{split}.json").is_file():
            examples += scene_examples(stamps / f"{split}.json")
    return examples


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
        "--threshold", type=float, default=0.45, metavar="T", help="minimum score, " + help_default
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    setup_logger(name="glipv2_d2")
    console = Console()
    predictor = Predictor(args.config_file, args.weights)
    with tempfile.TemporaryDirectory() as scratch:
        examples = collect_examples(Path(scratch))
        prompts = {"detections": FilePrompts(classes=[example.names for example in examples])}
        text_tasks = predictor.model.text_tasks
        if text_tasks is not None and text_tasks.answer is not None:
            prompts["answers"] = FilePrompts(question=[example.question for example in examples])
        if text_tasks is not None and text_tasks.caption is not None:
            prompts["captions"] = FilePrompts(describe=True)
        skipped = []
        for task, prompt in prompts.items():
            predictions = predict_files(
                predictor,
                [example.image for example in examples],
                prompt,
                output_dir=args.output / task,
                console=console,
                threshold=args.threshold,
            )
            write_json(predictions.rows, args.output / f"{task}.json")
            write_jpeg(make_overview(predictions.annotated_images), args.output / f"{task}.jpg")
            skipped += predictions.skipped
    for line in (
        *(f"skipped: {reason}" for reason in dict.fromkeys(skipped)),
        *(
            f"{task}: overview in {args.output / task}.jpg, images in {args.output / task}, "
            f"results in {args.output / task}.json"
            for task in prompts
        ),
    ):
        console.print(Text(line), soft_wrap=True)
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
