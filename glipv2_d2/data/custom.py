"""Datasets defined in the config: ``DATASETS.CUSTOM``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog

from glipv2_d2.data.readers.captions import register_captions, register_shards
from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.readers.coco_captions import register_captioning
from glipv2_d2.data.readers.grounded_text import register_grounded_text
from glipv2_d2.data.readers.grounding import register_grounding
from glipv2_d2.data.readers.tsv_captions import register_tsv_captions
from glipv2_d2.data.readers.tsv_detection import register_tsv_detection
from glipv2_d2.data.readers.vqa import register_questions

DEFAULT_FORMAT = "coco"

# For each format, the function that registers it and the keys of its path arguments, in order. A
# key that ends in "?" is optional.
FORMATS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "coco": (register_coco, ("json", "images")),
    "grounding": (register_grounding, ("json", "images")),
    "captions": (register_captions, ("json", "images")),
    "webdataset": (register_shards, ("shards",)),
    "tsv": (register_tsv_captions, ("yaml",)),
    "tsv_detection": (register_tsv_detection, ("yaml",)),
    "grounded_text": (register_grounded_text, ("json", "images")),
    "captioning": (register_captioning, ("json", "images")),
    "vqa": (register_questions, ("json", "images", "questions", "answers?")),
}

# The entries registered so far. An equal entry is ignored, a different one is an error.
_registered: dict[str, dict[str, Any]] = {}


def register_custom(entries: Sequence[dict[str, Any]]) -> None:
    """Register the entries of ``DATASETS.CUSTOM``; registered entries are skipped.

    An entry is ``{name: my_train, json: my/train.json, images: my/train}``; ``format`` is one of
    :data:`FORMATS`, default "coco". A test set of questions has no ``answers``. Paths are relative
    to the working directory; "~" is the home directory.

    Raises:
        ValueError: an entry has a missing, unknown or empty key, or another dataset has its name.
    """
    for entry in entries:
        register_format, keys = _check_entry(entry)
        name = entry["name"]
        if name in DatasetCatalog:
            if _registered.get(name) != entry:
                raise ValueError(
                    f"DATASETS.CUSTOM: another dataset is registered as {name!r}: choose another "
                    "name"
                )
            continue
        paths = [entry.get(key.removesuffix("?")) for key in keys]
        register_format(name, *(path and os.path.expanduser(path) for path in paths))
        _registered[name] = dict(entry)


def _check_entry(entry: Any) -> tuple[Callable[..., None], tuple[str, ...]]:
    if not isinstance(entry, dict):
        raise ValueError(
            f"DATASETS.CUSTOM: {entry!r} is not a mapping; write {_example(DEFAULT_FORMAT)}"
        )
    kind = entry.get("format", DEFAULT_FORMAT)
    if kind not in FORMATS:
        raise ValueError(f"DATASETS.CUSTOM: unknown format {kind!r}; use one of {sorted(FORMATS)}")
    register_format, keys = FORMATS[kind]
    required = {"name", *(key for key in keys if not key.endswith("?"))}
    known = {"name", "format", *(key.removesuffix("?") for key in keys)}
    wrong = (required - entry.keys()) | (entry.keys() - known)
    if wrong or not all(isinstance(v, str) and v for v in entry.values()):
        raise ValueError(
            f"DATASETS.CUSTOM: {entry!r} should have the keys {sorted(required)} (format: {kind}), "
            "each with a nonempty string; missing or unknown: "
            f"{sorted(map(str, wrong)) or 'none'}. Example: {_example(kind)}"
        )
    return register_format, keys


def _example(kind: str) -> str:
    """An example entry of a format, for error messages.

    >>> _example("webdataset")
    '{name: my_train, format: webdataset, shards: my/shards}'
    """
    keys = [key.removesuffix("?") for key in FORMATS[kind][1]]
    ends = {"images": "train", "shards": "shards", "json": "train.json", "yaml": "train.yaml"}
    paths = "".join(f", {key}: my/{ends.get(key, key + '.json')}" for key in keys)
    return f"{{name: my_train, format: {kind}{paths}}}"
