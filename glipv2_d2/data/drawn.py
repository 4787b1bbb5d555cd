"""Drawn cut-outs: named, coloured shapes. They need no download."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from glipv2_d2.data.composed_dataset import SceneSplit, write_split
from glipv2_d2.data.composition import Cutout

SIZE = 160
COLORS = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (235, 205, 50),
}
Point = tuple[float, float]


def _polygon(points: list[Point]) -> Callable[[ImageDraw.ImageDraw, tuple[int, int, int]], None]:
    def draw(canvas: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
        canvas.polygon([(x * SIZE, y * SIZE) for x, y in points], fill=color)

    return draw


def _circle(canvas: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    canvas.ellipse((4, 4, SIZE - 4, SIZE - 4), fill=color)


def _ring(canvas: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    canvas.ellipse((4, 4, SIZE - 4, SIZE - 4), outline=color, width=SIZE // 5)


def _star_points(points: int = 5, inner: float = 0.42) -> list[Point]:
    corners = []
    for i in range(2 * points):
        radius = 0.49 * (1 if i % 2 == 0 else inner)
        angle = math.pi * i / points - math.pi / 2
        corners.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return corners


SHAPES = {
    "circle": _circle,
    "ring": _ring,
    "square": _polygon([(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)]),
    "triangle": _polygon([(0.5, 0.06), (0.96, 0.92), (0.04, 0.92)]),
    "star": _polygon(_star_points()),
    "arrow": _polygon(
        [
            (0.03, 0.38),
            (0.55, 0.38),
            (0.55, 0.15),
            (0.97, 0.5),
            (0.55, 0.85),
            (0.55, 0.62),
            (0.03, 0.62),
        ]
    ),
    "cross": _polygon(
        [
            (0.35, 0.03),
            (0.65, 0.03),
            (0.65, 0.35),
            (0.97, 0.35),
            (0.97, 0.65),
            (0.65, 0.65),
            (0.65, 0.97),
            (0.35, 0.97),
            (0.35, 0.65),
            (0.03, 0.65),
            (0.03, 0.35),
            (0.35, 0.35),
        ]
    ),
}


NOVEL_NAMES = frozenset(
    {
        *("red circle", "blue circle", "green star", "yellow star"),
        *("red square", "green square", "blue cross", "yellow cross"),
    }
)
"""Held-out class names: new pairs of colours and shapes that all occur in other names."""


def drawn_cutouts() -> list[Cutout]:
    """Every shape in every colour: "red circle" ... "yellow cross"."""
    cutouts = []
    for shape, draw in SHAPES.items():
        for color, rgb in COLORS.items():
            image = Image.new("RGBA", (SIZE, SIZE))
            draw(ImageDraw.Draw(image), rgb)
            cutouts.append(Cutout(f"{color} {shape}", image.crop(image.getbbox())))
    return cutouts


def base_cutouts() -> list[Cutout]:
    """The cut-outs whose names are not novel."""
    return [cutout for cutout in drawn_cutouts() if cutout.name not in NOVEL_NAMES]


def novel_cutouts() -> list[Cutout]:
    """The cut-outs whose names are novel."""
    return [cutout for cutout in drawn_cutouts() if cutout.name in NOVEL_NAMES]


def write_drawn(
    root: Path,
    *,
    split: str,
    num_images: int,
    size: int,
    seed: int,
    load_cutouts: Callable[[], list[Cutout]] = drawn_cutouts,
) -> Path:
    """Write square scenes of drawn cut-outs on drawn backgrounds; returns the annotation file.

    Args:
        split: name of the files below ``root``.
        size: side of the images, in pixels.
        seed: seed of the scenes.
        load_cutouts: returns the cut-outs; their names are the categories.
    """
    names = sorted({cutout.name for cutout in load_cutouts()})
    scenes = SceneSplit(
        name=split,
        num_images=num_images,
        sizes=[(size, size)],
        seed=seed,
        category_names=names,
        load_cutouts=load_cutouts,
    )
    return write_split(scenes, root)
