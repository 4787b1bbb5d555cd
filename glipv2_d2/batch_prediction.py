"""Prediction over many image files: batches, prompts, and written files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.file_writing import atomic_open, atomic_write, dump_json
from glipv2_d2.images import read_image
from glipv2_d2.item_errors import predict_each
from glipv2_d2.prediction import Prediction
from glipv2_d2.predictor import PROBE, Predictor

JPEG_QUALITY = 92
# Of the stem of a written file; with suffixes a name has at most 255 bytes.
MAX_STEM_BYTES = 200

R = TypeVar("R")


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
        without_parts: drop boxes inside a better one of the same name, likewise.
        tiles: detect in tiles of this size, likewise.
    """

    classes: Sequence[str] | Sequence[Sequence[str]] | None = None
    negatives: Sequence[str] | None = None
    caption: str | None = None
    question: str | Sequence[str] | None = None
    describe: bool = False
    one_name_per_box: bool = False
    without_parts: bool = False
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
        options: dict[str, Any] = {
            "threshold": None,
            "channel_order": "RGB",
            "batch_size": max(1, len(images)),
        }
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
        if self.without_parts:
            results = [prediction.without_parts() for prediction in results]
        return [({}, prediction) for prediction in results]

    def _questions(self, indices: Iterable[int]) -> list[str]:
        question = self.question or ""
        return [question if isinstance(question, str) else question[i] for i in indices]

    def _class_names(self, indices: Iterable[int]) -> Any:
        if not self.classes or isinstance(self.classes[0], str):
            return self.classes
        return [self.classes[index] for index in indices]


def shorten_stem(stem: str) -> str:
    """The beginning of a file name that stays valid with a number and suffixes."""
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    return stem


def write_jpeg(image: np.ndarray, path: Path) -> None:
    """Write an RGB array (H, W, 3) atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(encode_jpeg(image))


def encode_jpeg(image: np.ndarray) -> bytes:
    """An RGB array (H, W, 3) as the content of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def write_json(rows: list[dict[str, Any]], path: Path) -> None:
    """Write result rows atomically."""
    atomic_write(path, dump_json(rows, indent=1, ensure_ascii=False))
