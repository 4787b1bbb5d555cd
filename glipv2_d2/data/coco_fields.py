"""The fields of an entry in COCO's format, parsed from the types in which exporters write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Id = int | str
Size = tuple[int, int]
"""(height, width) in pixels."""
Segmentation = list[list[float]] | dict[str, Any]
"""Polygons [x, y, x, y, ...], or a compressed RLE."""

NUM_BOX_NUMBERS = 4
# x and y of three points.
MIN_POLYGON_NUMBERS = 6
# No picture has more pixels in a row or column; greater numbers are errors.
MAX_COORDINATE = 1e7
# Polygons reach at most this many times the longer side of the image beyond it; rasterizing
# takes time and memory in proportion to their length.
MAX_POLYGON_REACH = 10
MAX_POLYGON_COORDINATE = 1e6
# pycocotools counts the pixels of a mask in 32 bits.
MAX_PIXELS = 2**32 - 1
MAX_ID_DIGITS = 18

_INTEGER = re.compile(rf"-?[0-9]{{1,{MAX_ID_DIGITS}}}")
_FALSE, _TRUE = ("", "false", "no"), ("true", "yes")


def parse_id(value: Any) -> Id | None:
    """An id: integers also as text or as 7.0, other text as it is. None for all other values.

    >>> parse_id(7), parse_id("7"), parse_id(7.0), parse_id("x7"), parse_id(None)
    (7, 7, 7, 'x7', None)
    """
    if type(value) is int:
        return value
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _INTEGER.fullmatch(text) else text or None
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**MAX_ID_DIGITS:
        return int(value)
    return None


def parse_number(value: Any, limit: float = MAX_COORDINATE) -> float | None:
    """A number, also as text, between -limit and limit; None for all other values.

    >>> parse_number(2), parse_number("2.5"), parse_number(float("nan")), parse_number(10**400)
    (2, 2.5, None, None)
    """
    if isinstance(value, str):
        try:
            # Python also reads 2_0 as 20.
            value = float(value.replace("_", "?"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # False for NaN.
    return value if -limit <= value <= limit else None


def parse_flag(value: Any) -> bool | None:
    """A flag: true, 1, "1" or "true"; a missing or empty one is False. None if it is neither.

    >>> parse_flag("0"), parse_flag("1"), parse_flag(None), parse_flag("perhaps")
    (False, True, False, None)
    """
    if value is None or value is False or value == 0:
        return False
    if isinstance(value, str) and value.strip().lower() in _FALSE:
        return False
    if value is True or (isinstance(value, str) and value.strip().lower() in _TRUE):
        return True
    number = parse_number(value)
    return None if number is None else number != 0


def parse_size(image: dict[str, Any]) -> Size | None:
    """The ``height`` and ``width`` of an image entry; None without two positive whole numbers."""
    height, width = (parse_number(image.get(key)) for key in ("height", "width"))
    if height is None or width is None or not (height >= 1 and width >= 1):
        return None
    if height != int(height) or width != int(width) or height * width > MAX_PIXELS:
        return None
    return int(height), int(width)


def parse_box(value: Any) -> list[float] | None:
    """Four numbers; None for all other values."""
    if not isinstance(value, list | tuple) or len(value) != NUM_BOX_NUMBERS:
        return None
    numbers = [parse_number(number) for number in value]
    return None if None in numbers else numbers  # type: ignore[return-value]


def has_area(box: Sequence[float], size: Size | None) -> bool:
    """Whether a box (XYWH) has area, within the image if its size is known."""
    x, y, width, height = box
    if not (width > 0 and height > 0):
        return False
    return size is None or (x < size[1] and y < size[0] and x + width > 0 and y + height > 0)


def parse_segmentation(value: Any, size: Size | None) -> tuple[Segmentation | None, int]:
    """The usable mask of an annotation, and the number of its parts that are unusable.

    Polygons are lists [x, y, x, y, ...] of at least three points that enclose an area; one flat
    polygon and points as pairs [[x, y], ...] are accepted. An RLE has the size of the image, runs
    that fill it, and at least one pixel.

    Args:
        size: of the image; None if unknown, then an RLE is unusable.

    Returns:
        None without a usable part; an entry without a mask has no unusable part.
    """
    if value is None or value in ([], {}, ""):
        return None, 0
    if isinstance(value, dict) and size is not None:
        rle = parse_rle(value, size)
        return rle, int(rle is None)
    if not isinstance(value, list):
        return None, 1
    parts = _split_polygons(value)
    polygons = [polygon for part in parts if (polygon := _parse_polygon(part, size)) is not None]
    return polygons or None, len(parts) - len(polygons)


def is_one_polygon(value: Any) -> bool:
    """Whether a segmentation is a single polygon without the list around it.

    >>> is_one_polygon([1, 1, 9, 1, 9, 9]), is_one_polygon([[1, 1], [9, 1], [9, 9]])
    (True, True)
    >>> is_one_polygon([[1, 1, 9, 1, 9, 9]])
    False
    """
    if not isinstance(value, list) or not value:
        return False
    return not any(isinstance(part, list) for part in value) or _are_points(value)


def _split_polygons(value: list[Any]) -> list[Any]:
    return [value] if is_one_polygon(value) else value


def _are_points(value: Any) -> bool:
    """Whether a list consists of pairs of numbers."""
    return isinstance(value, list) and all(
        isinstance(part, list) and len(part) == 2 and not any(isinstance(n, list) for n in part)
        for part in value
    )


def _parse_polygon(value: Any, size: Size | None) -> list[float] | None:
    if _are_points(value):
        value = [number for point in value for number in point]
    if not isinstance(value, list) or len(value) % 2 or len(value) < MIN_POLYGON_NUMBERS:
        return None
    try:
        numbers = np.asarray(value)
    except ValueError:
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iufU":
        return None
    if numbers.dtype.kind == "U":
        parsed = [parse_number(number) for number in value]
        return None if None in parsed else _parse_polygon(parsed, size)
    limit = MAX_POLYGON_COORDINATE
    if size is not None:
        limit = min(limit, MAX_POLYGON_REACH * max(size))
    # False for NaN.
    if not (np.abs(numbers) <= limit).all():
        return None
    encloses_area = np.ptp(numbers[::2]) > 0 and np.ptp(numbers[1::2]) > 0
    return value if encloses_area else None


def parse_rle(value: dict[str, Any], size: Size) -> dict[str, Any] | None:
    """A compressed RLE of the size of the image; None if the value is not one.

    pycocotools reads beyond its memory if the runs do not fill the image, so they are checked.
    """
    given = value.get("size")
    if not isinstance(given, list) or [parse_id(number) for number in given] != list(size):
        return None
    runs = value.get("counts")
    counts = _decode_runs(runs) if isinstance(runs, str) else runs
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return None
    # The runs alternate between background and foreground.
    if sum(counts) != math.prod(size) or not any(counts[1::2]):
        return None
    rle = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _decode_runs(text: str) -> list[int] | None:
    """The runs of a compressed RLE: 5 bits per character, from 3 runs on as differences.

    >>> rle = coco_mask.frPyObjects({"size": [9, 9], "counts": [3, 40, 5, 33]}, 9, 9)
    >>> _decode_runs(rle["counts"].decode())
    [3, 40, 5, 33]
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    except UnicodeEncodeError:
        return None
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    # Seven characters hold 35 bits, more than any run has.
    if lengths.max() > 7:
        return None
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    # The highest bit is the sign.
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs.tolist()
