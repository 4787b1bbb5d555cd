"""What scenes are put on: crops of photographs and textures, and drawn noise.

Photographs that the demo and the checks are judged on (scikit-image's chelsea, coffee, rocket,
astronaut, motorcycle) are never used. Training and test scenes take different photographs.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from glipv2_d2.images import open_image

# Files of scikit-image.
TRAIN_PHOTOS = ("grass.png", "gravel.png", "hubble_deep_field.jpg")
# Photographs of things that have a name here (a flower, a temple) would be unlabelled things.
TEST_PHOTOS = ("brick.png", "moon.png")
PHOTO_PROBABILITY = 0.5


def load_photos(files: tuple[str, ...]) -> list[Image.Image]:
    """Photographs that scikit-image carries, in RGB."""
    if not files:
        return []
    # Drawn backgrounds need no scikit-image.
    from skimage.data import data_dir

    return [_open(f"{data_dir}/{file}") for file in files]


def _open(path: str) -> Image.Image:
    with open_image(path) as image:
        return image.convert("RGB")


def make_background(
    photos: list[Image.Image], size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """A random background of ``size`` (w, h); without photographs always a drawn one."""
    if photos and rng.random() < PHOTO_PROBABILITY:
        return _photo_crop(photos[rng.integers(len(photos))], size, rng)
    return _clouds(size, rng) if rng.random() < 0.6 else _gradient(size, rng)


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


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    first, second = rng.integers(0, 256, (2, 3))
    ys, xs = np.mgrid[0 : size[1], 0 : size[0]]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * xs / size[0] + np.sin(angle) * ys / size[1]
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    noise = rng.normal(0, rng.uniform(0, 10), (size[1], size[0], 3))
    pixels = first * (1 - ramp) + second * ramp + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Coloured noise of several scales, like cloth, walls and foliage out of focus."""
    pixels = np.full((size[1], size[0], 3), rng.uniform(30, 220, 3))
    for cells in (2, 5, 12, 40):
        noise = rng.normal(0, 1, (cells, cells, 3)) * rng.uniform(0, 45)
        if rng.random() < 0.5:
            noise = noise.mean(axis=2, keepdims=True).repeat(3, axis=2)
        channels = [
            Image.fromarray(noise[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        pixels = pixels + np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
