"""Cut-outs of photographs with class names: the reviewed part of Tux Paint's stamps.

The list ``assets/stamp_names.tsv`` was reviewed by hand: photographs only, one singular class name
each, no class that is a subclass of another. The use of each cut-out:

- ``train``: of a training class, in the training scenes;
- ``heldout``: of a training class, kept out of training;
- ``novel``: of a class without training data.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from glipv2_d2.data.composition import SOLID_ALPHA, Cutout
from glipv2_d2.images import open_image

NAMES_FILE = Path(__file__).parents[1] / "assets" / "stamp_names.tsv"
MAX_SIDE = 400


@dataclass(frozen=True)
class StampEntry:
    """A row of the list. ``path`` is relative to the directory of the stamps, without suffix."""

    path: str
    name: str
    use: str


def stamp_entries() -> list[StampEntry]:
    """The rows of the list, in order."""
    with NAMES_FILE.open(encoding="utf8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [StampEntry(row["cutout"], row["name"], row["use"]) for row in rows]


@dataclass(frozen=True)
class StampLoader:
    """Loads the cut-outs of some uses, at most 400 pixels a side.

    Attributes:
        root: the directory of the stamps (.../share/tuxpaint/stamps).
        uses: "train", "heldout" or "novel".
    """

    root: Path
    uses: tuple[str, ...]

    def __call__(self) -> list[Cutout]:
        """The cut-outs in the order of the list.

        Raises:
            FileNotFoundError: a stamp of the list does not exist.
        """
        return [
            Cutout(entry.name, _load_image(self.root / f"{entry.path}.png"))
            for entry in stamp_entries()
            if entry.use in self.uses
        ]


def _load_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: {path.name} is on the reviewed list of Tux Paint's stamps "
            "2022.06.04; pass the directory of these stamps"
        )
    with open_image(path) as file:
        image = file.convert("RGBA")
    solid = image.getchannel("A").point(lambda alpha: 255 * (alpha >= SOLID_ALPHA))
    image = image.crop(solid.getbbox())
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
