"""Custom prompt texts for the classes of a dataset.

A JSON file gives the prompt text per dataset and class::

    {"odinw_pothole_val": {"pothole": ["there are some ", "holes", " on the road"]},
     "coco_2017_val": {"mouse": "computer mouse"}}

Of three strings, the second stands for the class and the others surround it. Other classes keep
their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.messages import quote
from glipv2_d2.text.names import clean_name, normalized_name
from glipv2_d2.text.prompts import Decoration

Overrides = dict[str, dict[str, Decoration]]
"""Dataset name -> class name -> its prompt text."""


def load_prompt_overrides(path: str | Path) -> Overrides:
    """Load the prompt texts of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not have the format above.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        return {
            dataset: {name: _decoration(text) for name, text in of_dataset.items()}
            for dataset, of_dataset in content.items()
        }
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the prompt file '{path}' does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is not a prompt file ({error}): write "
            '{"dataset": {"class": ["text before ", "name", " text after"]}}'
        ) from error


def _decoration(text: Any) -> Decoration:
    parts = ["", text, ""] if isinstance(text, str) else text
    is_strings = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    if not is_strings or len(parts) != len(Decoration._fields) or not parts[1].strip():
        raise ValueError(
            f"{quote(text)} is neither a name nor three strings, the second one a name"
        )
    return Decoration(*parts)


def override_prompts(dataset_name: str, text_of: Mapping[str, Decoration]) -> None:
    """Set the prompt text of some classes of a registered dataset, for evaluation and training.

    Args:
        text_of: class name -> prompt text.

    Raises:
        ValueError: the dataset has no class of that name.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # Its reader sets the class names.
    names = metadata.get("thing_classes") or []
    text_of_name = {normalized_name(name): text for name, text in text_of.items()}
    known = set(map(normalized_name, names))
    unknown = [name for name in text_of if normalized_name(name) not in known]
    if unknown:
        raise ValueError(
            f"dataset {dataset_name!r} has no classes {quote(unknown)}; it has {quote(names)}"
        )
    # Metadata refuse to change a value that is set.
    if metadata.get("decorations"):
        del metadata.decorations
    metadata.decorations = [
        text_of_name.get(normalized_name(name), Decoration("", clean_name(name), ""))
        for name in names
    ]
