"""Label maps of the detection datasets of VinVL and GLIP: class name -> number.

Two published forms: JSON, ``{"wine glass": 7, ...}`` (``object365_vgoiv6_class2ind.json``) or the
same below ``label_to_idx`` (``VG-SGG-dicts-vgoi6-clipped.json``); and text with a name per line,
numbered from 1 (``train.labelmap.tsv``). Source: microsoft/GLIP, data/datasets/tsv.py.
"""

from __future__ import annotations

import os

from glipv2_d2.data.json_files import load_json
from glipv2_d2.messages import quote
from glipv2_d2.text.names import clean_name

BACKGROUND = "__background__"


def read_label_map(path: str) -> dict[str, int]:
    """The number of each class name, without the background; several names may share one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another form, or no names.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the label map {path!r} does not exist")
    numbers = load_json(path) if path.endswith(".json") else _numbered_lines(path)
    if isinstance(numbers, dict):
        numbers = numbers.get("label_to_idx", numbers)
    if not isinstance(numbers, dict):
        raise ValueError(f"{path!r} is not a label map: it should be {{name: number}}")
    for name, number in numbers.items():
        if type(number) is not int or not clean_name(name).strip():
            raise ValueError(
                f"{path!r} has {quote(name)}: {quote(number)}; a label map has a name and its "
                "number, a whole one"
            )
    named = {name: number for name, number in numbers.items() if name != BACKGROUND}
    if not named:
        raise ValueError(f"the label map {path!r} has no class names")
    return named


def _numbered_lines(path: str) -> dict[str, int]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not text in UTF-8: {error}") from error
    return {name: number for number, name in enumerate(names, start=1) if name}
