"""What the web page shows for an image and a prompt."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glipv2_d2.command_line import parse_class_names
from glipv2_d2.file_writing import dump_json
from glipv2_d2.images import decode_image
from glipv2_d2.prediction import Prediction
from glipv2_d2.predictor import Predictor

CLASSES, CAPTION, QUESTION, DESCRIBE = "Class names", "Caption", "Question", "Describe"
HINTS = {
    CLASSES: "cat, coffee cup, motorcycle",
    CAPTION: "a cat beside a cup",
    QUESTION: "is there a cat in the picture?",
    DESCRIBE: "",
}
MAX_PIXELS = 40_000_000
COLUMNS = ["name", "score", "x", "y", "width", "height"]


@dataclass(frozen=True)
class PageResult:
    """What the page shows.

    Attributes:
        text: the answer or caption; empty for class names and captions.
        prediction: drawn and listed.
    """

    text: str
    prediction: Prediction


def run_task(
    predictor: Predictor, path: str, task: str, prompt: str, threshold: float
) -> tuple[np.ndarray, PageResult]:
    """The image (H, W, 3), R, G, B, and the result of a task.

    Args:
        prompt: class names separated by commas (empty: those of a fine-tuned model), a caption or a
            question.

    Raises:
        FileNotFoundError, ValueError: the image or the prompt is invalid, or the model has no head
            for the task.
    """
    image = _read_upload(Path(path))
    if task == DESCRIBE:
        caption = predictor.caption(image, ground=True, threshold=threshold, channel_order="RGB")
        assert caption.grounding is not None
        return image, PageResult(caption.caption, caption.grounding)
    own_names = predictor.class_names if task == CLASSES and not prompt.strip() else []
    if not prompt.strip() and not own_names:
        raise ValueError(f"write something under {task!r}, such as: {HINTS[task]}")
    if task == QUESTION:
        answer = predictor.answer(
            image, prompt, ground=True, threshold=threshold, channel_order="RGB"
        )
        assert answer.grounding is not None
        return image, PageResult(f"{answer.answer} ({answer.score:.0%})", answer.grounding)
    if task == CAPTION:
        prediction = predictor.ground(image, prompt, threshold=threshold, channel_order="RGB")
        return image, PageResult("", prediction)
    prediction = predictor.predict(
        image,
        classes=own_names or parse_class_names(prompt),
        threshold=threshold,
        one_name_per_box=True,
        channel_order="RGB",
    )
    return image, PageResult("", prediction.without_parts())


def _read_upload(path: Path) -> np.ndarray:
    """The image of an upload; errors have its name without its temporary folder."""
    with path.open("rb") as file:
        return decode_image(file, path.name, max_pixels=MAX_PIXELS)


def phrases_in_text(prediction: Prediction) -> list[tuple[str, str | None]]:
    """The caption cut into (part, phrase); None outside phrases. Without one, the found names."""
    if prediction.text is None:
        return [(name, name) for name in dict.fromkeys(prediction.labels)]
    found = set(prediction.labels)
    spans = sorted(
        (start, end, name)
        for name, phrase in zip(prediction.names, prediction.spans, strict=True)
        for start, end in phrase
        if name in found
    )
    parts: list[tuple[str, str | None]] = []
    last = 0
    for start, end, name in spans:
        if start < last:
            continue
        parts += [(prediction.text[last:start], None), (prediction.text[start:end], name)]
        last = end
    parts.append((prediction.text[last:], None))
    return [part for part in parts if part[0]]


def rows_of(prediction: Prediction) -> list[list[Any]]:
    """A row of :data:`COLUMNS` for each detection, best first."""
    return [
        [row["category_name"], round(row["score"], 3), *(round(value) for value in row["bbox"])]
        for row in prediction.to_coco(0)
    ]


def write_result(folder: Path, result: PageResult) -> str:
    """Write the JSON file to download; its path."""
    height, width = result.prediction.image_size
    content = {
        "width": width,
        "height": height,
        "text": result.text,
        "detections": result.prediction.to_coco(0),
    }
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix="result_", suffix=".json", delete=False, encoding="utf-8"
    ) as file:
        file.write(dump_json(content, indent=1, ensure_ascii=False))
    return file.name
