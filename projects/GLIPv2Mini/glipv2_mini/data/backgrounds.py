"""Backgrounds of scenes: crops of photographs and textures, or drawn noise.

The photographs of the demo and the tests (scikit-image's chelsea, coffee, rocket, astronaut,
motorcycle) are excluded. Training and test scenes use different photographs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from skimage.data import data_dir

from glipv2_d2.data.composition import drawn_background
from glipv2_d2.images import open_image

# Files of scikit-image.
TRAIN_PHOTOS = ("grass.png", "gravel.png", "hubble_deep_field.jpg")
# Photographs of objects with a class name (a flower, a temple) would add unlabelled objects.
TEST_PHOTOS = ("brick.png", "moon.png")
PHOTO_PROBABILITY = 0.5


@dataclass(frozen=True)
class PhotoBackground:
    """Random backgrounds: crops of photographs, or drawn ones.

    Attributes:
        files: of scikit-image.
    """

    files: tuple[str, ...]

    def __call__(self, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
        """A background of ``size`` (w, h)."""
        photos = _load_photos(self.files)
        if photos and rng.random() < PHOTO_PROBABILITY:
            return _photo_crop(photos[rng.integers(len(photos))], size, rng)
        return drawn_background(size, rng)


@functools.cache
def _load_photos(files: tuple[str, ...]) -> list[Image.Image]:
    """scikit-image's photographs, in RGB."""
    return [_load_image(f"{data_dir}/{file}") for file in files]


def _load_image(path: str) -> Image.Image:
    with open_image(path) as image:
        return image.convert("RGB")


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
    crop = ImageEnhance.Brightness(crop).enhance(rng.uniform(0.5, 1.3))
    return ImageEnhance.Color(crop).enhance(rng.uniform(0, 1.3))
