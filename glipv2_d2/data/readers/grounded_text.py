"""Questions and captions with pseudo boxes of their phrases, as JSON lines.

A line has the format of :mod:`glipv2_d2.data.readers.captions`; its caption is also a target
caption. For a question, the caption is question and answer, separated by a space, and the line
also has::

    {"caption": "what is on the mat? dog", "question": "what is on the mat?", "question_id": 7,
     "answers": {"dog": 1.0, "cat": 0.3}}

``tools/ground_questions.py`` writes such lines. Training packs no other captions around these.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import json_lines
from glipv2_d2.data.readers.captions import UNUSABLE_LINE, caption_record
from glipv2_d2.data.registration import Record, StreamedRecords, register
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)


def register_grounded_text(name: str, json_file: str, image_root: str) -> None:
    register(
        name,
        StreamedRecords(functools.partial(iterate_grounded_text, json_file, image_root, name)),
        source_files=(json_file, image_root),
    )


def read_grounded_text(json_file: str, image_root: str, dataset_name: str) -> list[Record]:
    """One record per line; without a box above the score threshold, it has a text task only."""
    return list(iterate_grounded_text(json_file, image_root, dataset_name))


def iterate_grounded_text(json_file: str, image_root: str, dataset_name: str) -> Iterator[Record]:
    """The records of :func:`read_grounded_text`, one by one."""
    faults = Faults()
    image_id = 0
    for number, line in json_lines(json_file):
        try:
            content = json.loads(line)
            record = _record(content, os.path.join(image_root, content["image"]))
        # The line is truncated, or has other fields.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            where = f"{json_file}:{number} ({type(error).__name__}: {error})"
            faults.add(UNUSABLE_LINE, where)
            continue
        yield {"image_id": image_id, **record}
        image_id += 1
    faults.warn(logger, dataset_name)


def _record(content: dict[str, Any], path: str) -> Record:
    record = caption_record(content, path)
    if fields.QUESTION in content:
        if not record[fields.CAPTION].startswith(content[fields.QUESTION].strip()):
            raise ValueError("the caption does not begin with the question")
        record[fields.QUESTION] = content[fields.QUESTION]
        record[fields.QUESTION_ID] = content[fields.QUESTION_ID]
        record[fields.ANSWERS] = {
            str(answer): float(score) for answer, score in content[fields.ANSWERS].items()
        }
    else:
        record[fields.TARGET_CAPTIONS] = [record[fields.CAPTION]]
    if not record["annotations"]:
        del record["annotations"], record[fields.CAPTION]
    return record
