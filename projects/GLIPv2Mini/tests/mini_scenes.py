"""Composed scenes of drawn shapes, which need no download."""

from __future__ import annotations

from pathlib import Path

from glipv2_d2.data.composed_dataset import SceneSplit
from glipv2_d2.data.drawn import drawn_cutouts
from glipv2_mini.data.backgrounds import PhotoBackground
from glipv2_mini.data.scene_dataset import scene_questions, write_scenes
from glipv2_mini.data.scene_text import noun_phrase


def write_drawn_scenes(
    root: Path, *, split: str = "val", num_images: int, size: int, seed: int
) -> Path:
    """Write a split with all derived files; returns the annotation file."""
    scenes = SceneSplit(
        name=split,
        num_images=num_images,
        sizes=[(size, size)],
        seed=seed,
        category_names=sorted({cutout.name for cutout in drawn_cutouts()}),
        load_cutouts=drawn_cutouts,
        make_background=PhotoBackground("test"),
        noun_phrase=noun_phrase,
        make_questions=scene_questions,
    )
    return write_scenes(scenes, root)
