"""Compose images from cut-outs on a background, with the exact visible mask of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

# Pixels of at least this alpha belong to the object; the rest is its soft edge.
SOLID_ALPHA = 128
MAX_OBJECTS = 6
# A smaller visible share makes an object unrecognisable.
MIN_VISIBLE_SHARE = 0.35
MIN_VISIBLE_PIXELS = 80
PLACING_TRIES = 8
# Larger factors blur small cut-outs.
MAX_ENLARGEMENT = 4.0
# Probability of a scene with one object that fills most of the image.
CLOSE_UP_PROBABILITY = 0.2
SAME_NAME_PROBABILITY = 0.2


@dataclass(frozen=True)
class Cutout:
    """An object without its background.

    Attributes:
        name: its class name.
        image: RGBA, cropped to the visible part.
    """

    name: str
    image: Image.Image


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene; ``mask`` is (H, W) bool, its visible pixels."""

    name: str
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY in pixels around the mask, x2 and y2 one past the last pixel."""
        ys, xs = np.nonzero(self.mask)
        return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    objects: list[SceneObject]


def compose_scene(
    cutouts: Sequence[Cutout], background: Image.Image, rng: np.random.Generator
) -> Scene:
    """Paste one to six random cut-outs on a background; later ones occlude earlier ones.

    All random numbers come from ``rng``, so that a scene is a function of its seed. A class name is
    sampled first and then one of its cut-outs, so that all names are equally frequent.
    """
    by_name: dict[str, list[Cutout]] = {}
    for cutout in cutouts:
        by_name.setdefault(cutout.name, []).append(cutout)
    names = sorted(by_name)
    close_up = rng.random() < CLOSE_UP_PROBABILITY
    count = int(rng.integers(1, 4 if close_up else MAX_OBJECTS + 1))

    image = background.copy()
    owner = np.zeros((image.height, image.width), dtype=np.int16)
    placed: list[tuple[str, int]] = []  # name and pixels when whole
    for i in range(count):
        if placed and rng.random() < SAME_NAME_PROBABILITY:
            name = placed[-1][0]
        else:
            name = names[rng.integers(len(names))]
        cutout = by_name[name][rng.integers(len(by_name[name]))]
        share = rng.uniform(0.6, 0.95) if close_up and i == 0 else np.exp(rng.uniform(-1.9, -0.55))
        patch = _vary(cutout.image, share * min(image.size), rng)
        area = int((np.asarray(patch.getchannel("A")) >= SOLID_ALPHA).sum())
        for _ in range(PLACING_TRIES):
            corner = _random_corner(patch.size, image.size, rng)
            mask = _mask_at(patch, corner, image.size)
            candidate = np.where(mask, len(placed) + 1, owner)
            # Try another position if any object would be mostly hidden.
            if _all_visible(candidate, [*placed, (name, area)]):
                image.paste(patch, corner, patch)
                owner = candidate
                placed.append((name, area))
                break
    objects = [SceneObject(name, owner == i) for i, (name, _) in enumerate(placed, start=1)]
    return Scene(_finish(image, rng), objects)


def _all_visible(owner: np.ndarray, placed: list[tuple[str, int]]) -> bool:
    visible = np.bincount(owner.ravel(), minlength=len(placed) + 1)[1:]
    return all(
        pixels >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * area)
        for pixels, (_, area) in zip(visible, placed, strict=True)
    )


def _vary(image: Image.Image, side: float, rng: np.random.Generator) -> Image.Image:
    """Another size, direction, tilt, colour and sharpness of a cut-out."""
    scale = min(side / max(image.size), MAX_ENLARGEMENT)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    size = (
        max(8, round(image.width * scale * stretch)),
        max(8, round(image.height * scale / stretch)),
    )
    image = image.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        angle = rng.uniform(-20, 20)
        image = image.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    alpha, color = image.getchannel("A"), image.convert("RGB")
    color = ImageEnhance.Brightness(color).enhance(rng.uniform(0.65, 1.35))
    color = ImageEnhance.Contrast(color).enhance(rng.uniform(0.7, 1.3))
    color = ImageEnhance.Color(color).enhance(rng.uniform(0.5, 1.4))
    if rng.random() < 0.3:
        color = Image.fromarray(
            (np.asarray(color) * rng.uniform(0.85, 1.15, 3)).clip(0, 255).astype(np.uint8)
        )
    color.putalpha(alpha)
    return color


def _random_corner(
    patch_size: tuple[int, int], image_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Where a patch's upper left corner goes, (x, y): up to an eighth of it may be outside."""
    (width, height), (image_width, image_height) = patch_size, image_size
    x = int(rng.integers(-width // 8, max(1, image_width - width * 7 // 8)))
    y = int(rng.integers(-height // 8, max(1, image_height - height * 7 // 8)))
    return x, y


def _mask_at(
    patch: Image.Image, corner: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """The pixels (H, W) of an image that a patch at ``corner`` covers."""
    alpha = Image.new("L", image_size)
    alpha.paste(patch.getchannel("A"), corner)
    return np.asarray(alpha) >= SOLID_ALPHA


def _finish(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One light and one lens for the whole picture."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.08:
        image = ImageEnhance.Color(image).enhance(0.0)
    return image


def drawn_background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random gradient or noise texture of ``size`` (w, h)."""
    return _clouds(size, rng) if rng.random() < 0.6 else _gradient(size, rng)


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
