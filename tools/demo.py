#!/usr/bin/env python
r"""Find what you name in pictures: annotated pictures, a result file and a table.

    tools/demo.py --config-file configs/mini/glipv2_mini.yaml --input photos/ \
        --classes "cat, dog, coffee cup" --output output/photos --json output/photos.json

A model with heads for them also answers a question (--question "what is on the table?") and
describes (--describe); below each picture stands what it said, each phrase in the colour of its
boxes.

The result file is a COCO result list whose rows also carry file_name and category_name; image_id
counts the inputs and category_id the names of your list, both from 0. With a model of masks rows
have a segmentation (RLE) and pictures show it. Of --question and --describe it has a row per
picture with what was said and its detections. The exit code is 0 when every picture was read, 1
when some were skipped, 2 when the command could not be carried out.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import setup_logger
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table
from rich.text import Text

from glipv2_d2.checkpoint import atomic_open
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.evaluation.thresholds import NameThresholds
from glipv2_d2.images import read_image
from glipv2_d2.predictor import Prediction, Predictor
from glipv2_d2.visualization import draw_prediction, draw_with_text

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TABLE_NUMBERS = ("score", "x", "y", "width", "height")


@dataclass
class Findings:
    """What a run over pictures gave.

    Attributes:
        rows: COCO result rows of all pictures, with ``file_name``; or a row per picture with what
            was said of it and its ``detections``.
        num_detections: of all pictures.
        pictures: the annotated pictures that were written, in the order of the inputs.
        skipped: the reason for each picture that could not be read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    num_detections: int = 0
    pictures: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_in_pictures(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    output_dir: Path,
    console: Console,
    threshold: float,
    classes: Sequence[str] | Sequence[Sequence[str]] | None = None,
    negatives: Sequence[str] | None = None,
    caption: str | None = None,
    question: str | Sequence[str] | None = None,
    describe: bool = False,
    thresholds: NameThresholds | None = None,
    batch_size: int = 1,
) -> Findings:
    """Ask every picture, write it annotated to ``output_dir`` and print its table.

    ``classes`` is one list of names for all pictures, or one list per picture; ``question`` one
    for all, or one per picture. ``thresholds`` take the place of ``threshold``. With a question, or
    to ``describe``, nothing else is asked.
    """
    findings = Findings()
    targets = output_paths(paths, output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    is_per_picture = bool(classes) and not isinstance(classes[0], str)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("Pictures", total=len(paths))
        for start in range(0, len(paths), batch_size):
            images = {}
            for index in range(start, min(start + batch_size, len(paths))):
                try:
                    images[index] = read_image(paths[index])
                except (FileNotFoundError, ValueError) as error:
                    findings.skipped.append(str(error))
            if describe:
                told = describe_pictures(predictor, list(images.values()))
            elif question is not None:
                asked = [question if isinstance(question, str) else question[i] for i in images]
                told = answer_about_pictures(predictor, list(images.values()), asked)
            else:
                predictions = predictor.predict(
                    images.values(),
                    classes=[classes[index] for index in images] if is_per_picture else classes,
                    negatives=negatives,
                    caption=caption,
                    channel_order="RGB",
                    batch_size=batch_size,
                )
                told = [({}, prediction) for prediction in predictions]
            for (index, image), (said, prediction) in zip(images.items(), told, strict=True):
                prediction = prediction.above(thresholds or threshold)
                draw = draw_with_text if said else draw_prediction
                write_picture(draw(image, prediction), targets[index])
                rows = prediction.to_coco(index)
                print_table(console, paths[index], prediction, rows, said)
                findings.pictures.append(targets[index])
                findings.num_detections += len(rows)
                named = {"file_name": str(paths[index])}
                if said:
                    findings.rows.append({**named, **said, "detections": rows})
                else:
                    findings.rows += [{**named, **row} for row in rows]
            bar.advance(task, batch_size)
    return findings


Told = list[tuple[dict[str, Any], Prediction]]
"""Per picture what was said of it, and its phrases as detections."""


def describe_pictures(predictor: Predictor, images: Sequence[np.ndarray]) -> Told:
    captions = predictor.caption(
        images, ground=True, channel_order="RGB", batch_size=max(1, len(images))
    )
    return [({"caption": told.caption}, told.grounding) for told in captions]


def answer_about_pictures(
    predictor: Predictor, images: Sequence[np.ndarray], questions: Sequence[str]
) -> Told:
    answers = predictor.answer(
        images, questions, ground=True, channel_order="RGB", batch_size=max(1, len(images))
    )
    return [
        ({"question": question, "answer": told.answer, "answer_score": told.score}, told.grounding)
        for question, told in zip(questions, answers, strict=True)
    ]


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """The pictures that files, folders (not their subfolders) and glob patterns name.

    Raises:
        ValueError: a folder or a pattern without a picture. A file that does not exist is returned:
            it is one bad picture among others.
    """
    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif not path.exists() and glob.has_magic(name):
            found = sorted(Path(match) for match in glob.glob(name, recursive=True))
        else:
            found = [path]
        if not found:
            raise ValueError(f"no picture in --input {name!r}; give files, folders or patterns")
        paths += found
    return list(dict.fromkeys(paths))


def output_paths(paths: Sequence[Path], output_dir: Path) -> list[Path]:
    """A JPEG in ``output_dir`` for each picture, none twice and none an input itself.

    Pictures of one name are told apart by their folder, and if need be by a number.
    """
    times = Counter(path.stem for path in paths)
    taken = {path.resolve() for path in paths}
    targets = []
    for path in paths:
        stem = path.stem if times[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}"
        target, number = output_dir / f"{stem}.jpg", 1
        while target.resolve() in taken:
            number += 1
            target = output_dir / f"{stem}_{number}.jpg"
        taken.add(target.resolve())
        targets.append(target)
    return targets


def parse_names(text: str, option: str = "--classes") -> list[str]:
    """Names between commas, as on the command line."""
    return _without_empty_names([name.strip() for name in text.split(",")], f"{option} {text!r}")


def read_names(path: Path) -> list[str]:
    """Names of a file, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes-file {path} cannot be read: {error}") from error
    return _without_empty_names([line.strip() for line in lines], f"--classes-file {path}")


def _without_empty_names(names: list[str], source: str) -> list[str]:
    if "" in names:
        raise ValueError(f"name {names.index('') + 1} of {source} is empty; remove or write it")
    return names


def print_table(
    console: Console,
    path: Path,
    prediction: Prediction,
    rows: Sequence[dict[str, Any]],
    said: dict[str, Any],
) -> None:
    """What was asked of a picture and said of it, and the detections, best first, in its pixels.

    ``rows`` are the detections in COCO's format.
    """
    height, width = prediction.image_size
    asked = textwrap.shorten(", ".join(prediction.names), 100, placeholder=" ...")
    # Text, because rich would read [brackets] in a name as markup.
    title = Text(f"{path} ({width} x {height}): {len(prediction)} found of {asked}")
    console.print(title, soft_wrap=True)
    if "question" in said:
        answer = f"{said['question']} {said['answer']} ({said['answer_score']:.0%})"
        console.print(Text(answer), soft_wrap=True)
    elif said:
        console.print(Text(said["caption"]), soft_wrap=True)
    if len(prediction) == 0:
        return
    table = Table("what", *(Column(name, justify="right") for name in TABLE_NUMBERS))
    for row in rows:
        numbers = [f"{row['score']:.2f}", *(f"{value:.0f}" for value in row["bbox"])]
        table.add_row(Text(row["category_name"]), *numbers)
    console.print(table)


def write_picture(image: np.ndarray, path: Path) -> None:
    """Write an RGB array (H, W, 3) as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        Image.fromarray(image).save(file, format="JPEG", quality=92)


def write_json(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-8"))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="pictures, folders of pictures, or quoted patterns such as 'photos/**/*.jpg'",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--classes", metavar="NAMES", help='what to look for: "cat, coffee cup"')
    prompt.add_argument("--classes-file", type=Path, metavar="FILE", help="the same, one per line")
    prompt.add_argument(
        "--caption", metavar="TEXT", help="a sentence whose noun phrases are looked for"
    )
    prompt.add_argument(
        "--question", metavar="TEXT", help="a question to be answered, for a model of answers"
    )
    prompt.add_argument(
        "--describe", action="store_true", help="say what is there, for a model of captions"
    )
    parser.add_argument(
        "--negatives",
        metavar="NAMES",
        help='names that compete with --classes and are not shown: "wolf, fox" where dogs are '
        "looked for",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where annotated pictures go"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the detections there")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        metavar="T",
        help="least score that is shown and written, 0 to 1 (default: %(default)s). Below the "
        "config's MODEL.GROUNDING.SCORE_THRESH there is nothing to show",
    )
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="least scores by name in place of --threshold, written by check_names.py calibrate",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="pictures per forward pass (default: %(default)s)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, last on the line: --opts MODEL.WEIGHTS my.pth",
    )
    return parser


def run(args: argparse.Namespace, console: Console) -> Findings:
    if not 0 <= args.threshold <= 1 or args.batch_size < 1:
        raise ValueError(
            f"--threshold is {args.threshold} (0 to 1), --batch-size {args.batch_size} (1 or more)"
        )
    classes = parse_names(args.classes) if args.classes is not None else None
    if args.classes_file is not None:
        classes = read_names(args.classes_file)
    negatives = parse_names(args.negatives, "--negatives") if args.negatives else None
    thresholds = NameThresholds.of(args.thresholds) if args.thresholds else None
    paths = expand_inputs(args.input)
    findings = find_in_pictures(
        Predictor(args.config_file, opts=args.opts),
        paths,
        output_dir=args.output,
        console=console,
        threshold=args.threshold,
        classes=classes,
        negatives=negatives,
        caption=args.caption,
        question=args.question,
        describe=args.describe,
        thresholds=thresholds,
        batch_size=args.batch_size,
    )
    if args.json is not None:
        write_json(findings.rows, args.json)
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    setup_logger(name="glipv2_d2")
    console = Console()
    try:
        findings = run(args, console)
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(findings, args, console)
    return 1 if findings.skipped else 0


def report(findings: Findings, args: argparse.Namespace, console: Console) -> None:
    """Say what was written and where, and what was not."""
    least = args.thresholds or f"{args.threshold:g}"
    lines = [
        f"{len(findings.pictures)} annotated pictures in {args.output}, "
        f"{findings.num_detections} detections of at least {least}"
    ]
    if args.json is not None:
        lines.append(f"detections written to {args.json}")
    lines += [f"skipped: {reason}" for reason in findings.skipped]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
