from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from glipv2_mini.data.cutouts import StampLoader, stamp_entries


def test_novel_classes_have_no_other_use() -> None:
    uses = defaultdict(set)
    for entry in stamp_entries():
        uses[entry.name].add(entry.use)
    assert all(kinds == {"novel"} for kinds in uses.values() if "novel" in kinds)


def test_held_out_cutouts_are_of_training_classes() -> None:
    entries = stamp_entries()
    trained = {entry.name for entry in entries if entry.use == "train"}
    assert {entry.name for entry in entries if entry.use == "heldout"} <= trained


def test_novel_classes_come_from_all_large_categories() -> None:
    entries = stamp_entries()
    novel = {entry.path.split("/")[0] for entry in entries if entry.use == "novel"}
    assert {"animals", "food", "hobbies", "household", "plants", "sports", "vehicles"} <= novel


def test_every_cutout_has_one_use() -> None:
    paths = [entry.path for entry in stamp_entries()]
    assert len(paths) == len(set(paths))


def test_a_missing_stamp_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"reviewed list of Tux Paint's stamps"):
        StampLoader(tmp_path, ("train",))()


def test_a_cutout_is_cropped_to_its_visible_part(tmp_path: Path) -> None:
    for entry in stamp_entries():
        if entry.use == "novel":
            path = tmp_path / f"{entry.path}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGBA", (50, 40))
            image.paste((255, 0, 0, 255), (10, 5, 30, 35))
            image.save(path)
    assert {cutout.image.size for cutout in StampLoader(tmp_path, ("novel",))()} == {(20, 30)}
