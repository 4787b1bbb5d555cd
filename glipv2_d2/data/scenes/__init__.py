"""Composed scenes: pictures put together from cut-outs, so that every box and mask is exact."""

from glipv2_d2.data.scenes.compose import Scene, SceneObject, compose_scene
from glipv2_d2.data.scenes.cutouts import Cutout, load_stamps
from glipv2_d2.data.scenes.drawn import (
    NOVEL_NAMES,
    base_cutouts,
    drawn_cutouts,
    novel_cutouts,
    write_drawn,
)
from glipv2_d2.data.scenes.writing import SceneSplit, write_split

__all__ = [
    "NOVEL_NAMES",
    "Cutout",
    "Scene",
    "SceneObject",
    "SceneSplit",
    "base_cutouts",
    "compose_scene",
    "drawn_cutouts",
    "load_stamps",
    "novel_cutouts",
    "write_drawn",
    "write_split",
]
