"""Predictions as JSON objects, as they are stored and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glipv2_d2.prediction import Prediction

# Of an answer or a generated caption, see batch_prediction.TextPrediction.
TEXT_KEYS: tuple[str, ...] = ("question", "answer", "answer_score", "caption")


def to_entry(
    prediction: Prediction, text: Mapping[str, Any], classes: Sequence[Any] | None
) -> dict[str, Any]:
    """A prediction without its image.

    Args:
        text: the answer or caption, see :data:`~glipv2_d2.batch_prediction.TextPrediction`.
        classes: of the run, which are not repeated.
    """
    height, width = prediction.image_size
    entry: dict[str, Any] = {"height": height, "width": width, **text}
    if list(classes or ()) != prediction.names:
        entry["names"] = prediction.names
    if prediction.text is not None:
        entry |= {"text": prediction.text, "spans": prediction.spans}
    entry["detections"] = prediction.to_coco(0)
    return entry


def prediction_of(entry: Mapping[str, Any], classes: Sequence[Any] | None) -> Prediction:
    """The prediction of an entry of :func:`to_entry`."""
    names = entry.get("names", classes)
    size = (entry["height"], entry["width"])
    prediction = Prediction.from_coco(entry["detections"], list(names or ()), size)
    if "text" not in entry:
        return prediction
    spans = tuple(tuple(map(tuple, phrase)) for phrase in entry["spans"])
    return Prediction(prediction.instances, prediction.names, size, entry["text"], spans)


def text_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The answer or caption of an entry; empty for class names."""
    return {key: entry[key] for key in TEXT_KEYS if key in entry}
