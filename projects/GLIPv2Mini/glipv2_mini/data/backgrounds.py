"""Backgrounds of scenes: crops of photographs and textures, or drawn noise.

The list ``assets/background_photos.tsv`` was reviewed by hand: photographs (landscapes, leaves,
water, sky, walls) without a thing in front that a class name describes, each from a Debian package
or scikit-image. Where such a thing stands aside, the columns x1 to y2 are the region without it, as
shares of the width and height. Training and test scenes use different photographs.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from skimage.data import data_dir

from glipv2_d2.data.composition import drawn_background
from glipv2_d2.images import open_image

PHOTOS_FILE = Path(__file__).parents[1] / "assets" / "background_photos.tsv"
SCIKIT_IMAGE = "scikit-image"
MAX_SIDE = 1600
"""Larger photographs are reduced when they are loaded, in pixels."""


@dataclass(frozen=True)
class BackgroundPhoto:
    """A row of the list.

    Attributes:
        package: the Debian package of the file, or scikit-image.
        file: path in the package, or in scikit-image's data.
        use: "train" or "test".
        region: XYXY, the part to use, as shares of the width and height.
    """

    package: str
    file: str
    use: str
    region: tuple[float, float, float, float]


def background_photos() -> list[BackgroundPhoto]:
    """The rows of the list, in order."""
    with PHOTOS_FILE.open(encoding="utf8", newline="") as file:
        return [
            BackgroundPhoto(
                package=row["package"],
                file=row["file"],
                use=row["use"],
                region=(float(row["x1"]), float(row["y1"]), float(row["x2"]), float(row["y2"])),
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


@dataclass(frozen=True)
class PhotoBackground:
    """Random backgrounds: crops of photographs, or drawn ones.

    Attributes:
        use: of the photographs, "train" or "test".
        root: the directory where the Debian packages are unpacked; None: scikit-image's photographs
            only.
        photo_probability: of a photograph; the other backgrounds are drawn.
    """

    use: str
    root: Path | None = None
    photo_probability: float = 0.8

    def __call__(self, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
        """A background of ``size`` (w, h)."""
        photos = _load_photos(self.use, self.root)
        if rng.random() < self.photo_probability:
            return _photo_crop(photos[rng.integers(len(photos))], size, rng)
        return drawn_background(size, rng)


@functools.cache
def _load_photos(use: str, root: Path | None) -> list[Image.Image]:
    """The regions of the photographs of one use, in RGB."""
    return [
        _load_region(photo, root)
        for photo in background_photos()
        if photo.use == use and (root is not None or photo.package == SCIKIT_IMAGE)
    ]


def _load_region(photo: BackgroundPhoto, root: Path | None) -> Image.Image:
    folder = data_dir if root is None or photo.package == SCIKIT_IMAGE else root
    path = Path(folder) / photo.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: it is a background of the reviewed list, from "
            f"{photo.package}; pass the directory where this package is unpacked"
        )
    with open_image(path) as file:
        image = file.convert("RGB")
    x1, y1, x2, y2 = photo.region
    image = image.crop(
        (
            round(x1 * image.width),
            round(y1 * image.height),
            round(x2 * image.width),
            round(y2 * image.height),
        )
    )
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _photo_crop(photo: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.3, 1.0)
    width = share * min(photo.width, photo.height * size[0] / size[1])
    height = width * size[1] / size[0]
    x, y = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    crop = photo.resize(size, Image.Resampling.BILINEAR, (x, y, x + width, y + height))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        crop = crop.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    crop = ImageEnhance.Brightness(crop).enhance(rng.uniform(0.7, 1.15))
    return ImageEnhance.Color(crop).enhance(rng.uniform(0, 1.3))
