"""A user's own words for the classes of a data set.

A JSON file names, per data set and class, what a prompt says for the class::

    {"odinw_pothole_val": {"pothole": ["there are some ", "holes", " on the road"]},
     "coco_2017_val": {"mouse": "computer mouse"}}

Of three texts the middle one stands for the class. Other classes keep their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.text.prompts import Decoration, clean_name

Overrides = dict[str, dict[str, Decoration]]
"""Data set -> class name -> what a prompt says for it."""


def read_overrides(path: str | Path) -> Overrides:
    """The content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of the form above.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            dataset: {name: _decoration(words) for name, words in of_dataset.items()}
            for dataset, of_dataset in content.items()
        }
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the file of prompts '{path}' does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is no file of prompts ({error}): write "
            '{"data set": {"class": ["words before ", "name", " words after"]}}'
        ) from error


def _decoration(words: Any) -> Decoration:
    parts = ["", words, ""] if isinstance(words, str) else words
    is_texts = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    if not is_texts or len(parts) != len(Decoration._fields) or not parts[1].strip():
        raise ValueError(f"{words!r} is neither a name nor three texts, the second one a name")
    return Decoration(*parts)


def override_prompts(dataset_name: str, words: Mapping[str, Decoration]) -> None:
    """Have a registered data set ask these words in evaluation and in training.

    Raises:
        ValueError: it has no class of a name.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # learns its names by being read
    names = metadata.get("thing_classes") or []
    unknown = [name for name in words if name not in names]
    if unknown:
        raise ValueError(f"data set {dataset_name!r} has no classes {unknown}; it has {names}")
    # Metadata refuse to change a value that is set.
    if metadata.get("decorations"):
        del metadata.decorations
    metadata.decorations = [words.get(name, Decoration("", clean_name(name), "")) for name in names]
