"""Photo cut-outs with names: the reviewed part of Tux Paint's stamps.

The list ``assets/stamp_names.tsv`` was made by looking at every stamp: photographs only, one
singular name each, no name that is another's kind (a picture of one never shows the other), and
for each cut-out its use:

- ``train``: of a trained name, in the training scenes;
- ``heldout``: of a trained name, kept out of training;
- ``novel``: of a name that is never trained.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from glipv2_d2.images import open_image

NAMES_FILE = Path(__file__).parents[1] / "assets" / "stamp_names.tsv"
MAX_SIDE = 400
# Pixels of at least this alpha belong to the thing; the rest is its soft edge.
SOLID_ALPHA = 128


@dataclass(frozen=True)
class Cutout:
    """A thing without its surroundings.

    Attributes:
        name: what it is called.
        image: RGBA, cropped to what is visible.
    """

    name: str
    image: Image.Image


@dataclass(frozen=True)
class StampEntry:
    """A line of the reviewed list. ``path`` is below the stamps' directory, without ending."""

    path: str
    name: str
    use: str


def stamp_entries() -> list[StampEntry]:
    """The reviewed list, in its order."""
    with NAMES_FILE.open(encoding="utf8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [StampEntry(row["cutout"], row["name"], row["use"]) for row in rows]


def load_stamps(root: Path, uses: tuple[str, ...]) -> list[Cutout]:
    """The cut-outs of some uses, at most 400 pixels a side.

    Args:
        root: the stamps' directory (…/share/tuxpaint/stamps).

    Raises:
        FileNotFoundError: a stamp of the list is not there.
    """
    return [
        Cutout(entry.name, _load_image(root / f"{entry.path}.png"))
        for entry in stamp_entries()
        if entry.use in uses
    ]


def _load_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.name} is on the reviewed list of Tux Paint's stamps "
            "2022.06.04; is this their directory?"
        )
    with open_image(path) as file:
        image = file.convert("RGBA")
    solid = image.getchannel("A").point(lambda alpha: 255 * (alpha >= SOLID_ALPHA))
    image = image.crop(solid.getbbox())
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
