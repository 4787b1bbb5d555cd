"""Image augmentations: crop, resize and flip."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

# An image with a higher ratio of its sides is a strip; no dataset of GLIP has any.
STRIP_RATIO = 10


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, also for strips: each side keeps at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A resize of ``image``, (H, W, C), to a random size."""
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        return resize


class TruncatedResizeShortestEdge(T.Augmentation):
    """Detectron2's ``ResizeShortestEdge`` with GLIP's arithmetic (glip_reference.md 1).

    The long side is truncated where Detectron2 rounds it. If it would exceed the maximum, the
    short side is reduced first. Sizes differ from Detectron2's by a pixel or two. Rounding the
    short side may make the long one exceed the maximum: by a few pixels in an image, which keeps
    GLIP's size, and by thousands in a strip, which is cut to the maximum.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "choice",
    ) -> None:
        """
        Args:
            short_edge_length: in pixels. "choice" draws one of the values, "range" an integer
                between the two, both included. 0 keeps the size of the image.
            max_size: maximum of the long edge, in pixels.
            sample_style: "choice" or "range".
        """
        super().__init__()
        if sample_style not in ("choice", "range"):
            raise ValueError(f"sample_style is {sample_style!r}; use 'choice' or 'range'")
        lengths = (short_edge_length,) if isinstance(short_edge_length, int) else short_edge_length
        if sample_style == "range":
            lengths = (min(lengths), max(lengths))
        self._init({"lengths": lengths, "max_size": max_size, "sample_style": sample_style})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A resize of ``image``, (H, W, C), to a random size."""
        height, width = image.shape[:2]
        # From numpy's global state, as in Detectron2's own augmentations.
        if self.sample_style == "range":
            size = np.random.randint(self.lengths[0], self.lengths[1] + 1)  # noqa: NPY002
        else:
            size = np.random.choice(self.lengths)  # noqa: NPY002
        if size == 0:
            return T.NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, int(size), self.max_size)
        return T.ResizeTransform(height, width, new_height, new_width, Image.Resampling.BILINEAR)

    @staticmethod
    def get_output_shape(
        height: int, width: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """The resized (height, width).

        >>> TruncatedResizeShortestEdge.get_output_shape(480, 640, 800, 1333)
        (800, 1066)
        >>> TruncatedResizeShortestEdge.get_output_shape(1, 400_000, 800, 1333)
        (1, 1333)
        """
        short, long = min(height, width), max(height, width)
        size = short_edge_length
        if long / short * size > max_size:
            size = round(max_size * short / long)
        # A side keeps at least one pixel.
        size = max(size, 1)
        if size == short and long <= max_size:
            return height, width
        new_long = int(size * long / short)
        if long > STRIP_RATIO * short:
            new_long = min(new_long, max_size)
        return (size, new_long) if height <= width else (new_long, size)


_RESIZES = {
    "ResizeShortestEdge": ResizeShortestEdge,
    "TruncatedResizeShortestEdge": TruncatedResizeShortestEdge,
}


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of a config: resize only, in training rotate, crop, resize and flip.

    Raises:
        ValueError: ``INPUT.RESIZE`` is unknown, or a value of ``INPUT`` is invalid.
    """
    if cfg.INPUT.RESIZE not in _RESIZES:
        raise ValueError(f"INPUT.RESIZE is {cfg.INPUT.RESIZE!r}; use one of {sorted(_RESIZES)}")
    resize = _RESIZES[cfg.INPUT.RESIZE]
    if not is_train:
        return [resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations = _build_rotation(cfg.INPUT.RANDOM_ROTATION)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED:
        augmentations += _build_large_scale_jitter(cfg.INPUT.LARGE_SCALE_JITTER)
    else:
        augmentations.append(
            resize(
                cfg.INPUT.MIN_SIZE_TRAIN,
                cfg.INPUT.MAX_SIZE_TRAIN,
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            )
        )
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations


def _build_rotation(angles: Sequence[float]) -> list[T.Augmentation]:
    if not angles:
        return []
    if len(angles) != 2 or not -180 <= angles[0] <= angles[1] <= 180:
        raise ValueError(
            f"INPUT.RANDOM_ROTATION is {angles}; use two angles in degrees such as [-10, 10], "
            "or [] for none"
        )
    return [T.RandomRotation(list(angles), sample_style="range")]


def _build_large_scale_jitter(jitter: CfgNode) -> list[T.Augmentation]:
    """Resize by a wide range of scales, then crop to the size at scale 1 (Detectron2's LSJ)."""
    size, low, high = jitter.IMAGE_SIZE, jitter.MIN_SCALE, jitter.MAX_SCALE
    if size < 1 or not 0 < low <= high:
        raise ValueError(
            f"INPUT.LARGE_SCALE_JITTER has IMAGE_SIZE {size}, MIN_SCALE {low}, MAX_SCALE {high}: "
            "the size must be at least 1 pixel, and the scales above 0 and in this order"
        )
    return [
        T.ResizeScale(low, high, target_height=size, target_width=size),
        # Images are padded in batches.
        T.FixedSizeCrop((size, size), pad=False),
    ]
