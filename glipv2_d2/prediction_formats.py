"""Detections in the formats of other tools: YOLO, Pascal VOC, Label Studio.

All functions take the boxes of :class:`~glipv2_d2.prediction.Prediction`: XYXY, in pixels of an
image of ``image_size`` (height, width).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

# Control characters are not allowed in XML 1.0, not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

LABEL_STUDIO_NAMES = ("label", "image")
"""``from_name`` and ``to_name`` of Label Studio's tags, as in :func:`label_studio_config`."""


def yolo_lines(
    boxes: Sequence[Sequence[float]], classes: Sequence[int], image_size: tuple[int, int]
) -> str:
    """A line per box: class index, centre x, centre y, width, height, relative to the image."""
    height, width = image_size
    lines = []
    for box, class_index in zip(boxes, classes, strict=True):
        x1, y1, x2, y2 = _clip(box, image_size)
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        values += [(x2 - x1) / width, (y2 - y1) / height]
        lines.append(" ".join([str(class_index), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def voc_xml(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    image_size: tuple[int, int],
    file_name: str,
) -> str:
    """A Pascal VOC annotation.

    Its pixels are counted from 1 and both corners are inside the box: ``xmin`` is x1 + 1, ``xmax``
    is x2, rounded.
    """
    height, width = image_size
    root = ElementTree.Element("annotation")
    _add(root, "filename", file_name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)
    _add(root, "segmented", 0)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        item = ElementTree.SubElement(root, "object")
        _add(item, "name", label)
        _add(item, "pose", "Unspecified")
        for tag in ("truncated", "difficult"):
            _add(item, tag, 0)
        box = ElementTree.SubElement(item, "bndbox")
        xmin, ymin = min(round(max(x1, 0)) + 1, width), min(round(max(y1, 0)) + 1, height)
        xmax, ymax = max(min(round(x2), width), xmin), max(min(round(y2), height), ymin)
        for tag, value in (("xmin", xmin), ("ymin", ymin), ("xmax", xmax), ("ymax", ymax)):
            _add(box, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def label_studio_task(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float],
    image_size: tuple[int, int],
    image: str,
    model_version: str,
) -> dict[str, Any]:
    """A task of Label Studio with the detections as pre-annotations.

    Args:
        image: the address under which Label Studio finds the image.
    """
    height, width = image_size
    from_name, to_name = LABEL_STUDIO_NAMES
    results = []
    for index, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
        x1, y1, x2, y2 = _clip(box, image_size)
        # Ids are unique in a project, and the same in a second export.
        key = f"{image} {index}".encode(errors="backslashreplace")
        results.append(
            {
                "id": hashlib.blake2b(key, digest_size=5).hexdigest(),
                "type": "rectanglelabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": score,
                # In per cent of the image; more than 100 is invalid.
                "value": {
                    "x": 100 * x1 / width,
                    "y": 100 * y1 / height,
                    "width": 100 * (x2 - x1) / width,
                    "height": 100 * (y2 - y1) / height,
                    "rotation": 0,
                    "rectanglelabels": [_NOT_XML.sub(" ", label)],
                },
            }
        )
    prediction: dict[str, Any] = {"model_version": model_version, "result": results}
    if scores:
        prediction["score"] = sum(scores) / len(scores)
    return {"data": {to_name: image}, "predictions": [prediction]}


def label_studio_config(names: Sequence[str]) -> str:
    """The labelling interface of a Label Studio project for these class names."""
    from_name, to_name = LABEL_STUDIO_NAMES
    root = ElementTree.Element("View")
    ElementTree.SubElement(root, "Image", name=to_name, value=f"${to_name}")
    labels = ElementTree.SubElement(root, "RectangleLabels", name=from_name, toName=to_name)
    for name in names:
        ElementTree.SubElement(labels, "Label", value=_NOT_XML.sub(" ", name))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _clip(box: Sequence[float], image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box (XYXY) in its image."""
    height, width = image_size
    x1, y1, x2, y2 = box
    x1, x2 = (min(max(x, 0.0), width) for x in (x1, x2))
    y1, y2 = (min(max(y, 0.0), height) for y in (y1, y2))
    return x1, y1, x2, y2


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = _NOT_XML.sub(" ", str(value))
