"""Captions with pseudo boxes in the TSV files of GLIP (Cap4M, Conceptual Captions, SBU).

The files of :mod:`glipv2_d2.data.readers.tsv_files`, and optionally ``imageid2idx``, JSON with the
line number in ``img`` of each ``img_id`` of the annotations. The annotations of an image are::

    {"img_h": 240, "img_w": 320, "caption": "a dog on a sofa", "bboxes": [[10, 20, 200, 180]],
     "tokens_positive": [[[0, 5]]], "scores": [0.9]}

``bboxes`` are XYXY in pixels. In the second version of the format (``CAPTION_FORMAT_VERSION`` v2)
``bboxes`` and ``scores`` have a list per phrase. Source: microsoft/GLIP, data/datasets/caption.py.
``hw`` is not needed, because annotations have the size.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.readers.captions import UNUSABLE_LINE, caption_record, with_boxes
from glipv2_d2.data.readers.tsv_files import TsvLines, find_files, label_lines, tsv_paths
from glipv2_d2.data.registration import Record, StreamedRecords, register

logger = logging.getLogger(__name__)

OPTIONAL_KEYS = ("imageid2idx",)


def register_tsv_captions(name: str, yaml_file: str) -> None:
    """Register TSV files. Training packs other captions of the dataset around each caption."""
    register(
        name,
        StreamedRecords(functools.partial(iterate_tsv_captions, yaml_file, name)),
        source_files=(yaml_file,),
        find_files=functools.partial(find_files, yaml_file, OPTIONAL_KEYS),
        pack_captions=True,
    )


def iterate_tsv_captions(yaml_file: str, dataset_name: str) -> Iterator[Record]:
    """Grounding records, one by one; images are not extracted but read from the TSV file.

    Args:
        dataset_name: for the report of dropped lines.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the YAML file or a file of line numbers has another format.
    """
    paths = tsv_paths(yaml_file, OPTIONAL_KEYS)
    faults = Faults()
    yield from with_boxes(_parse_lines(paths, faults), faults)
    faults.warn(logger, dataset_name)


def _parse_lines(paths: Mapping[str, str], faults: Faults) -> Iterator[Record]:
    images = TsvLines(paths["img"])
    line_of = load_json(paths["imageid2idx"]) if "imageid2idx" in paths else None
    for number, line in label_lines(paths):
        try:
            annotations = json.loads(line.split(b"\t")[1])
            image = number if line_of is None else line_of[str(annotations["img_id"])]
            yield caption_record(_pair(annotations), images.image_path(image))
        # The line is truncated, has other fields, or does not exist.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            where = f"{paths['label']}:{number + 1} ({type(error).__name__}: {error})"
            faults.add(UNUSABLE_LINE, where)


def _pair(annotations: dict[str, Any]) -> dict[str, Any]:
    """Annotations as a line of :mod:`glipv2_d2.data.readers.captions`, without its image."""
    boxes, spans = annotations["bboxes"], annotations["tokens_positive"]
    scores = annotations.get("scores", [1.0] * len(boxes))
    if all(isinstance(value, list) for box in boxes for value in box):
        # A list per phrase.
        spans = [s for s, of_phrase in zip(spans, boxes, strict=True) for _ in of_phrase]
        scores = [score for of_phrase in scores for score in of_phrase]
        boxes = [box for of_phrase in boxes for box in of_phrase]
    pair = {"caption": annotations["caption"], "boxes": boxes, "spans": spans, "scores": scores}
    size = {"height": annotations.get("img_h"), "width": annotations.get("img_w")}
    return pair if None in size.values() else pair | size
