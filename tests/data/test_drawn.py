"""Scenes of drawn shapes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import prepare_drawn
import pytest

from glipv2_d2.data.builtin import DRAWN_SPLITS
from glipv2_d2.data.composition import Cutout
from glipv2_d2.data.drawn import NOVEL_NAMES, base_cutouts, drawn_cutouts, novel_cutouts


def names(cutouts: list[Cutout]) -> set[str]:
    return {cutout.name for cutout in cutouts}


def words(cutouts: list[Cutout]) -> set[str]:
    return {word for name in names(cutouts) for word in name.split()}


def test_base_and_novel_names_are_a_partition() -> None:
    assert names(novel_cutouts()) == NOVEL_NAMES
    assert names(base_cutouts()) | NOVEL_NAMES == names(drawn_cutouts())
    assert not names(base_cutouts()) & NOVEL_NAMES


def test_every_colour_and_shape_of_a_novel_name_is_in_base_names() -> None:
    assert words(novel_cutouts()) <= words(base_cutouts())


def test_novel_names_are_balanced_in_colours_and_shapes() -> None:
    for part in zip(*(name.split() for name in NOVEL_NAMES), strict=True):
        assert set(Counter(part).values()) == {2}


def test_every_split_has_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--num-train", "2", "--num-val", "1", "--size", "64"]
    monkeypatch.setattr("sys.argv", ["prepare_drawn.py", "--output", str(tmp_path), *options])
    prepare_drawn.main()
    contents = {
        split: json.loads((tmp_path / f"{split}.json").read_text()) for split in DRAWN_SPLITS
    }
    assert {k: len(v["images"]) for k, v in contents.items()} == {
        "train": 2,
        "base": 2,
        "val": 1,
        "novel": 1,
    }
    categories = {k: {c["name"] for c in v["categories"]} for k, v in contents.items()}
    assert categories["train"] == categories["val"] == names(drawn_cutouts())
    assert (categories["base"], categories["novel"]) == (names(base_cutouts()), NOVEL_NAMES)
