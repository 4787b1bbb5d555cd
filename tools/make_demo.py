#!/usr/bin/env python
"""Ask glipv2-mini about real photos and made-up scenes; ``make demo`` runs this.

Each picture is searched for things, which get boxes and masks. A model with heads for them
(--config-file, --weights) also answers a question about it and describes it, both with the boxes of
the phrases.

The photos are those that scikit-image carries; nothing is downloaded. Drawn scenes are made on the
spot; scenes composed of photo cut-outs join them where datasets/prepare_stamps.py has made some.
Every list of names also holds names of things that are not there.
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
from typing import Any

import numpy as np
from demo import find_in_pictures, write_json, write_picture
from detectron2.utils.logger import setup_logger
from PIL import Image, ImageOps
from rich.console import Console
from rich.text import Text

from glipv2_d2.data.scenes import write_drawn
from glipv2_d2.data.scenes.language import with_article
from glipv2_d2.data.scenes.retelling import ask_further
from glipv2_d2.images import open_image
from glipv2_d2.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "mini" / "glipv2_mini_joint.yaml"
WEIGHTS = ROOT / "glipv2_d2" / "assets" / "glipv2_mini_joint.pth"

# File of scikit-image -> what is asked, things that are there first.
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
class Question:
    """A picture and what is asked of it.

    Attributes:
        names: to look for.
        text: to be answered.
    """

    picture: Path
    names: list[str]
    text: str


def photo_questions() -> list[Question]:
    folder = Path(str(importlib.resources.files("skimage"))) / "data"
    return [Question(folder / file, names, _is_there(names)) for file, names in PHOTOS.items()]


def scene_questions(annotation_file: Path) -> list[Question]:
    """The first scenes of a COCO file, asked their own names and some of the file's others.

    Where something can be asked that is answered by a name, it is.
    """
    coco = json.loads(annotation_file.read_text(encoding="utf-8"))
    name_of_id = {category["id"]: category["name"] for category in coco["categories"]}
    asked_of = ask_further(coco)
    rng = random.Random(0)
    questions = []
    for image in coco["images"][:SCENES_PER_KIND]:
        ids = [a["category_id"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        names = list(dict.fromkeys(name_of_id[i] for i in ids))
        others = sorted(set(name_of_id.values()) - set(names))
        names += rng.sample(others, min(OTHER_NAMES_PER_SCENE, len(others)))
        picture = annotation_file.with_suffix("") / image["file_name"]
        named = [text for text, _ in asked_of[image["id"]] if text.startswith("what")]
        questions.append(Question(picture, names, [*named, _is_there(names)][0]))
    return questions


def _is_there(names: Sequence[str]) -> str:
    return f"is there {with_article(names[0])} in the picture?"


def make_overview(pictures: Sequence[Path], columns: int = 3) -> np.ndarray:
    """All pictures on one sheet, (H, W, 3) RGB."""
    width, height = TILE_SIZE
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        with open_image(picture) as image:
            tile = ImageOps.pad(image.convert("RGB"), TILE_SIZE, color="white")
        sheet.paste(tile, (index % columns * width, index // columns * height))
    return np.asarray(sheet)


def collect_questions(scratch: Path) -> list[Question]:
    questions = photo_questions()
    questions += scene_questions(
        write_drawn(scratch, split="drawn", num_images=SCENES_PER_KIND, size=320, seed=0)
    )
    stamps = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")) / "stamps"
    # "seen" holds names that the model was trained on, "novel" names that it was not.
    for split in ("seen", "novel"):
        if (stamps / f"{split}.json").is_file():
            questions += scene_questions(stamps / f"{split}.json")
    return questions


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
        "--threshold", type=float, default=0.45, metavar="T", help="least score, " + help_default
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    setup_logger(name="glipv2_d2")
    console = Console()
    predictor = Predictor(args.config_file, args.weights)
    with tempfile.TemporaryDirectory() as scratch:
        questions = collect_questions(Path(scratch))
        tasks: dict[str, dict[str, Any]] = {
            "detections": {"classes": [question.names for question in questions]}
        }
        if predictor.model.answer is not None:
            tasks["answers"] = {"question": [question.text for question in questions]}
        if predictor.model.caption is not None:
            tasks["descriptions"] = {"describe": True}
        skipped = []
        for task, asked in tasks.items():
            folder = args.output / task
            findings = find_in_pictures(
                predictor,
                [question.picture for question in questions],
                output_dir=folder,
                console=console,
                threshold=args.threshold,
                **asked,
            )
            write_json(findings.rows, args.output / f"{task}.json")
            write_picture(make_overview(findings.pictures), args.output / f"{task}.jpg")
            skipped += findings.skipped
    for line in (
        *(f"skipped: {reason}" for reason in dict.fromkeys(skipped)),
        *(
            f"{task}: all on one sheet in {args.output / task}.jpg, each in {args.output / task}, "
            f"and {args.output / task}.json"
            for task in tasks
        ),
    ):
        console.print(Text(line), soft_wrap=True)
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
