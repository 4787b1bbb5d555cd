"""Prediction over many image files: annotated images, result rows and tables."""

from __future__ import annotations

import functools
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table
from rich.text import Text

from glipv2_d2.command_line import printable
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.file_writing import atomic_open, atomic_write, dump_json
from glipv2_d2.images import read_image
from glipv2_d2.item_errors import predict_each
from glipv2_d2.prediction import Prediction
from glipv2_d2.predictor import PROBE, Predictor
from glipv2_d2.visualization import draw_prediction, draw_with_text

NUMERIC_COLUMNS = ("score", "x", "y", "width", "height")
JPEG_QUALITY = 92
# Of the stem of a written file; with suffixes a name has at most 255 bytes.
MAX_STEM_BYTES = 200

R = TypeVar("R")


@dataclass
class FilePredictions:
    """Results of :func:`predict_files`.

    Attributes:
        rows: COCO result rows with ``file_name``. For questions and captions one row per image,
            with the generated text and its ``detections``.
        num_detections: of all images.
        annotated_images: the written files, in the order of the inputs.
        skipped: an error message for each image that cannot be read, predicted, drawn or written.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    num_detections: int = 0
    annotated_images: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class ImageBatches:
    """Loads image files in batches and predicts them. Iterate over it once.

    Attributes:
        loaded: the files that have been read, without those that cannot be predicted.
        skipped: an error message for each other file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        batch_size: int,
        advance: Callable[[int], object] | None = None,
    ) -> None:
        """Prepare the batches; files are read during iteration.

        Args:
            advance: progress callback, called after each batch with its number of files.
        """
        self.paths = list(paths)
        self.batch_size = batch_size
        self.advance = advance
        self.loaded: list[Path] = []
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[dict[int, np.ndarray]]:
        """Yield the readable images of each batch: index in ``paths`` -> (H, W, 3) RGB array."""
        for start in range(0, len(self.paths), self.batch_size):
            images = {}
            end = min(start + self.batch_size, len(self.paths))
            for index in range(start, end):
                try:
                    images[index] = read_image(self.paths[index])
                except (FileNotFoundError, ValueError) as error:
                    self.skipped.append(str(error))
            self.loaded += [self.paths[index] for index in images]
            yield images
            if self.advance is not None:
                self.advance(end - start)

    def predict(
        self,
        images: Mapping[int, np.ndarray],
        predict: Callable[[dict[int, np.ndarray]], Iterable[R]],
    ) -> dict[int, R]:
        """The results of a batch, by index in ``paths``, without images that cannot be predicted.

        Args:
            predict: images by index -> one result per image.

        Raises:
            Exception: of ``predict``, if it also raises one for a small gray image.
        """
        results, errors = predict_each(predict, images, lambda _: PROBE)
        for index, error in errors.items():
            self.loaded.remove(self.paths[index])
            self.skipped.append(
                f"{str(self.paths[index])!r} cannot be predicted ({type(error).__name__}: {error})"
            )
        return results


TextPrediction = tuple[dict[str, Any], Prediction]
"""The generated text of an image as JSON fields (empty for detection), and its detections."""


@dataclass(frozen=True)
class FilePrompts:
    """Prompts for a list of image files: class names, a caption, questions, or captioning.

    Attributes:
        classes: class names, one list for all files or one list per file.
        negatives: class names that compete with ``classes`` and are not returned.
        caption: a sentence whose noun phrases are detected.
        question: a question, or one per file; answered and grounded.
        describe: generate a caption for each image and ground it.
        one_name_per_box: of overlapping boxes of different names, keep only the best; see
            :meth:`~glipv2_d2.predictor.Predictor.predict`. Not for questions and captioning.
        tiles: detect in tiles of this size, likewise.
    """

    classes: Sequence[str] | Sequence[Sequence[str]] | None = None
    negatives: Sequence[str] | None = None
    caption: str | None = None
    question: str | Sequence[str] | None = None
    describe: bool = False
    one_name_per_box: bool = False
    tiles: int | None = None

    def predict(
        self, predictor: Predictor, images: dict[int, np.ndarray], thresholds: ScoreThresholds
    ) -> list[TextPrediction]:
        """Predict a batch.

        Args:
            images: index of the file -> (H, W, 3) RGB array.
            thresholds: minimum score per name; detections below are dropped.
        """
        arrays = list(images.values())
        options: dict[str, Any] = {"channel_order": "RGB", "batch_size": max(1, len(images))}
        results: Any
        if self.describe:
            results = predictor.caption(arrays, ground=True, **options)
            return [
                ({"caption": result.caption}, result.grounding.above(thresholds))
                for result in results
            ]
        if self.question is not None:
            questions = self._questions(images)
            results = predictor.answer(arrays, questions, ground=True, **options)
            return [
                (
                    {"question": question, "answer": result.answer, "answer_score": result.score},
                    result.grounding.above(thresholds),
                )
                for question, result in zip(questions, results, strict=True)
            ]
        results = predictor.predict(
            arrays,
            classes=self._class_names(images),
            negatives=self.negatives,
            caption=self.caption,
            thresholds=thresholds,
            one_name_per_box=self.one_name_per_box,
            tiles=self.tiles,
            **options,
        )
        return [({}, prediction) for prediction in results]

    def _questions(self, indices: Iterable[int]) -> list[str]:
        question = self.question or ""
        return [question if isinstance(question, str) else question[i] for i in indices]

    def _class_names(self, indices: Iterable[int]) -> Any:
        if not self.classes or isinstance(self.classes[0], str):
            return self.classes
        return [self.classes[index] for index in indices]


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    prompts: FilePrompts,
    *,
    output_dir: Path,
    console: Console,
    threshold: float | ScoreThresholds,
    batch_size: int = 1,
) -> FilePredictions:
    """Predict image files, write annotated images to ``output_dir`` and print a table for each.

    Args:
        threshold: the minimum score, one for all names or by name.
        batch_size: images per forward pass.
    """
    if isinstance(threshold, int | float):
        threshold = ScoreThresholds({}, default=threshold)
    outputs = output_paths(paths, output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    predict = functools.partial(prompts.predict, predictor, thresholds=threshold)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("Images", total=len(paths))
        batches = ImageBatches(paths, batch_size, functools.partial(bar.advance, task))
        results = FilePredictions(skipped=batches.skipped)
        for images in batches:
            for index, (text, prediction) in batches.predict(images, predict).items():
                rows = prediction.to_coco(index)
                print_table(console, paths[index], prediction, rows, text)
                results.num_detections += len(rows)
                file_name = {"file_name": str(paths[index])}
                if text:
                    results.rows.append({**file_name, **text, "detections": rows})
                else:
                    results.rows += [{**file_name, **row} for row in rows]
                draw = draw_with_text if text else draw_prediction
                try:
                    write_jpeg(draw(images[index], prediction), outputs[index])
                # The detections are in the rows; those of other images are not lost either.
                except Exception as error:
                    name, output = str(paths[index]), str(outputs[index])
                    results.skipped.append(
                        f"{name!r} is predicted, but {output!r} cannot be written: {error}"
                    )
                else:
                    results.annotated_images.append(outputs[index])
    return results


def output_paths(paths: Sequence[Path], output_dir: Path) -> list[Path]:
    """A distinct JPEG path in ``output_dir`` for each image, none equal to an input.

    Images of the same name are distinguished by their folder, then by a number.
    """
    counts = Counter(path.stem for path in paths)
    # Unlike Path.resolve, realpath accepts links in a circle.
    used = {os.path.realpath(path) for path in paths}
    outputs = []
    for path in paths:
        stem = path.stem
        if counts[stem] > 1:
            folder = os.path.basename(os.path.dirname(os.path.realpath(path)))
            stem = f"{folder}_{stem}"
        stem = shorten_stem(stem)
        output, number = output_dir / f"{stem}.jpg", 1
        while os.path.realpath(output) in used:
            number += 1
            output = output_dir / f"{stem}_{number}.jpg"
        used.add(os.path.realpath(output))
        outputs.append(output)
    return outputs


def shorten_stem(stem: str) -> str:
    """The beginning of a file name that stays valid with a number and suffixes."""
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    return stem


def print_table(
    console: Console,
    path: Path,
    prediction: Prediction,
    rows: Sequence[dict[str, Any]],
    text: dict[str, Any],
) -> None:
    """Print the prompt, the generated text and the detections of an image.

    Args:
        rows: the detections in COCO's format, best first, in pixels of the image.
        text: the answer or caption, see :data:`TextPrediction`.
    """
    height, width = prediction.image_size
    names = textwrap.shorten(", ".join(prediction.names), 100, placeholder=" ...")
    # Text, because rich would parse [brackets] in a name as markup.
    title = Text(f"{printable(path)} ({width} x {height}): {len(prediction)} found of {names}")
    console.print(title, soft_wrap=True)
    if "question" in text:
        answer = f"{text['question']} {text['answer']} ({text['answer_score']:.0%})"
        console.print(Text(answer), soft_wrap=True)
    elif text:
        console.print(Text(text["caption"]), soft_wrap=True)
    if len(prediction) == 0:
        return
    table = Table("class", *(Column(name, justify="right") for name in NUMERIC_COLUMNS))
    for row in rows:
        numbers = [f"{row['score']:.2f}", *(f"{value:.0f}" for value in row["bbox"])]
        table.add_row(Text(row["category_name"]), *numbers)
    console.print(table)


def write_jpeg(image: np.ndarray, path: Path) -> None:
    """Write an RGB array (H, W, 3) atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        Image.fromarray(image).save(file, format="JPEG", quality=JPEG_QUALITY)


def write_json(rows: list[dict[str, Any]], path: Path) -> None:
    """Write result rows atomically."""
    atomic_write(path, dump_json(rows, indent=1, ensure_ascii=False))
