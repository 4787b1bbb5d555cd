"""Compose images from cut-outs on a background, with the exact visible mask of each."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from glipv2_d2.data.tinting import TINTS, tint
from glipv2_d2.images import open_image

Range = tuple[float, float]
"""The least and the largest value of a uniform distribution; two equal values are a constant."""

# Pixels of at least this alpha belong to the object; the rest is its soft edge.
SOLID_ALPHA = 128
MAX_OBJECTS = 6
PLACING_TRIES = 8
# Larger factors blur small cut-outs.
MAX_ENLARGEMENT = 4.0
# Channel factors of another colour of one object, and of the light on a whole picture, which leaves
# white objects white.
CAST_FACTORS = (0.85, 1.15)
LIGHT_FACTORS = (0.95, 1.05)


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
class SceneStyle:
    """What varies between scenes. The defaults suit simple scenes of drawn shapes.

    Attributes:
        log_side: natural logarithm of an object's longer side, as a share of the shorter side of
            the picture.
        close_up_probability: of a scene with one main object and at most two others.
        close_up_share: the main object's size, as a share of the largest that fits the picture.
        same_name_probability: that an object has the name of the object before it, where that has a
            new name, and where that repeats a name itself.
        outside: the largest share of an object's width and height that may be outside the picture,
            sampled per object.
        min_visible_share: least share of an object's pixels that is visible: less makes it
            unrecognisable.
        min_visible_pixels: least number of an object's visible pixels.
        max_overlap_of_likes: largest share of an object that may lie on another of its name, from
            which it is hard to distinguish.
        tint_probability: that an object is recoloured in one of
            :data:`~glipv2_d2.data.tinting.TINTS`.
        brightness: factor of the whole picture.
        contrast: factor of the whole picture.
        blur_probability: of a picture out of focus.
        blur: standard deviation of a blurred picture's filter, in pixels.
        grayscale_probability: of a picture without colours.
        cast_probability: of a coloured light.
        noise_probability: of sensor noise.
        noise: standard deviation of the sensor noise, of 255.
        jpeg_probability: of a picture with the artefacts of strong JPEG compression.
        jpeg_quality: of such a picture, 1 to 95.
    """

    log_side: Range = (-1.9, -0.55)
    close_up_probability: float = 0.2
    close_up_share: Range = (0.6, 0.95)
    same_name_probability: tuple[float, float] = (0.2, 0.2)
    outside: Range = (0.125, 0.125)
    min_visible_share: float = 0.35
    min_visible_pixels: int = 80
    max_overlap_of_likes: float = 1.0
    tint_probability: float = 0.0
    brightness: Range = (0.8, 1.2)
    contrast: Range = (1.0, 1.0)
    blur_probability: float = 0.25
    blur: Range = (0.3, 1.2)
    grayscale_probability: float = 0.08
    cast_probability: float = 0.0
    noise_probability: float = 0.0
    noise: Range = (2.0, 10.0)
    jpeg_probability: float = 0.0
    jpeg_quality: Range = (20, 70)


DRAWN_STYLE = SceneStyle()
PHOTO_STYLE = SceneStyle(
    log_side=(math.log(0.08), math.log(1.1)),
    close_up_probability=0.35,
    close_up_share=(0.5, 1.05),
    same_name_probability=(0.16, 0.65),
    outside=(0.0, 0.5),
    min_visible_share=0.5,
    min_visible_pixels=150,
    max_overlap_of_likes=0.2,
    tint_probability=0.25,
    brightness=(0.4, 1.5),
    contrast=(0.6, 1.2),
    blur=(0.3, 2.0),
    grayscale_probability=0.05,
    cast_probability=0.3,
    noise_probability=0.2,
    jpeg_probability=0.3,
)
"""Objects of 8 to 110 % of the picture, cut off by its edge, in all lights."""


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene.

    Attributes:
        name: its class name.
        mask: (H, W) bool, its visible pixels.
        color: the tint it was recoloured in; None: its own colours, or a picture without colours.
    """

    name: str
    mask: np.ndarray
    color: str | None = None

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
    cutouts: Sequence[Cutout],
    background: Image.Image,
    rng: np.random.Generator,
    style: SceneStyle = DRAWN_STYLE,
) -> Scene:
    """Paste one to six random cut-outs on a background; later ones occlude earlier ones.

    All random numbers come from ``rng``, so that a scene is a function of its seed. A class name is
    sampled first and then one of its cut-outs, so that all names are equally frequent.
    """
    by_name: dict[str, list[Cutout]] = {}
    for cutout in cutouts:
        by_name.setdefault(cutout.name, []).append(cutout)
    close_up = rng.random() < style.close_up_probability
    count = int(rng.integers(1, 4 if close_up else MAX_OBJECTS + 1))

    image = background.copy()
    owner = np.zeros((image.height, image.width), dtype=np.int16)
    placed: list[_Placed] = []
    for i in range(count):
        name = _sample_name([item.name for item in placed], sorted(by_name), style, rng)
        cutout = by_name[name][rng.integers(len(by_name[name]))]
        if close_up and i == 0:
            side = rng.uniform(*style.close_up_share) * _fitting_side(cutout.image, image)
        else:
            side = np.exp(rng.uniform(*style.log_side)) * min(image.size)
        patch = _vary(cutout.image, side, rng)
        color = _sample_tint(style, rng)
        if color is not None:
            patch = tint(patch, color)
        outside = _sample(style.outside, rng)
        area = int((np.asarray(patch.getchannel("A")) >= SOLID_ALPHA).sum())
        for _ in range(PLACING_TRIES):
            corner = _random_corner(patch.size, image.size, outside, rng)
            mask = _mask_at(patch, corner, image.size)
            candidate = np.where(mask, len(placed) + 1, owner)
            # Try another position if any object would be mostly hidden.
            if _all_visible(candidate, [*(item.area for item in placed), area], style) and (
                _overlap_of_likes(mask, owner, [item.name for item in placed], name)
                <= style.max_overlap_of_likes
            ):
                image.paste(patch, corner, patch)
                owner = candidate
                placed.append(_Placed(name, color, area))
                break
    image, colored = _finish(image, style, rng)
    objects = [
        SceneObject(item.name, owner == i, item.color if colored else None)
        for i, item in enumerate(placed, start=1)
    ]
    return Scene(image, objects)


@dataclass(frozen=True)
class _Placed:
    """An object while a scene is composed; ``area`` is its pixels when whole."""

    name: str
    color: str | None
    area: int


def _sample_name(
    before: Sequence[str], names: Sequence[str], style: SceneStyle, rng: np.random.Generator
) -> str:
    """The name of the next object, from the names of those before it and all names."""
    if before:
        repeats = len(before) > 1 and before[-1] == before[-2]
        if rng.random() < style.same_name_probability[repeats]:
            return before[-1]
    return names[int(rng.integers(len(names)))]


def _fitting_side(cutout: Image.Image, image: Image.Image) -> float:
    """The longer side of a cut-out that just fits into an image, in pixels."""
    scale = min(image.width / cutout.width, image.height / cutout.height)
    return scale * max(cutout.size)


def _sample_tint(style: SceneStyle, rng: np.random.Generator) -> str | None:
    if not _happens(style.tint_probability, rng):
        return None
    return list(TINTS)[rng.integers(len(TINTS))]


def _sample(values: Range, rng: np.random.Generator) -> float:
    """A value of a range; a constant takes no random number."""
    return values[0] if values[0] == values[1] else rng.uniform(*values)


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Whether an event happens; an impossible one takes no random number."""
    return probability > 0 and rng.random() < probability


def _all_visible(owner: np.ndarray, areas: Sequence[int], style: SceneStyle) -> bool:
    """Whether enough of each object is visible; ``areas`` are the objects' pixels when whole."""
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
    return all(
        pixels >= max(style.min_visible_pixels, style.min_visible_share * area)
        for pixels, area in zip(visible, areas, strict=True)
    )


def _overlap_of_likes(
    mask: np.ndarray, owner: np.ndarray, names: Sequence[str], name: str
) -> float:
    """The share of a mask on objects of the same name; ``names`` are those of all objects."""
    likes = [i for i, other in enumerate(names, start=1) if other == name]
    return float(np.isin(owner[mask], likes).sum() / max(1, mask.sum()))


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
        color = _from_pixels(np.asarray(color) * rng.uniform(*CAST_FACTORS, 3))
    color.putalpha(alpha)
    return color


def _random_corner(
    patch_size: tuple[int, int],
    image_size: tuple[int, int],
    outside: float,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Where a patch's upper left corner goes, (x, y): up to a share of it may be outside."""
    x, y = (
        int(rng.integers(math.floor(-side * outside), max(1, limit - int(side * (1 - outside)))))
        for side, limit in zip(patch_size, image_size, strict=True)
    )
    return x, y


def _mask_at(
    patch: Image.Image, corner: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """The pixels (H, W) of an image that a patch at ``corner`` covers."""
    alpha = Image.new("L", image_size)
    alpha.paste(patch.getchannel("A"), corner)
    return np.asarray(alpha) >= SOLID_ALPHA


def _finish(
    image: Image.Image, style: SceneStyle, rng: np.random.Generator
) -> tuple[Image.Image, bool]:
    """One light and one lens for the whole picture; returns whether it has colours, too."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*style.brightness))
    if _happens(style.blur_probability, rng):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur)))
    colored = not _happens(style.grayscale_probability, rng)
    if not colored:
        image = ImageEnhance.Color(image).enhance(0.0)
    image = ImageEnhance.Contrast(image).enhance(_sample(style.contrast, rng))
    if _happens(style.cast_probability, rng):
        image = _from_pixels(np.asarray(image) * rng.uniform(*LIGHT_FACTORS, 3))
    if _happens(style.noise_probability, rng):
        noise = rng.normal(0, rng.uniform(*style.noise), (image.height, image.width, 3))
        image = _from_pixels(np.asarray(image) + noise)
    if _happens(style.jpeg_probability, rng):
        image = _compress(image, round(rng.uniform(*style.jpeg_quality)))
    return image, colored


def _compress(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    with open_image(file) as compressed:
        return compressed.convert("RGB")


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    """The image of (H, W, 3) values, of 255, clipped."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


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
    return _from_pixels(pixels)


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
    return _from_pixels(pixels)
