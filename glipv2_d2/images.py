"""Load images from files, PIL images, arrays and tensors as uint8 RGB arrays (H, W, 3).

As in Detectron2's ``read_image``, the EXIF orientation is applied and transparency is dropped.
Unlike there, 16 bit gray images are scaled to 8 bits instead of saturated, and an unreadable file
raises an error with its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ImageSource = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, an array (H, W[, C]) or a tensor (C, H, W)."""

IMAGE_SOURCES = (str, Path, Image.Image, np.ndarray, Tensor)

ChannelOrder = Literal["BGR", "RGB"]

_RASTER_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")


def open_image(source: str | Path | IO[bytes]) -> Image.Image:
    """Open an image file of a raster format with Pillow.

    Use this in place of ``Image.open``, which tries all formats of Pillow: a PostScript file of any
    name starts Ghostscript and may write files.

    Raises:
        OSError: the file is missing, or not of a raster format.
    """
    Image.init()
    formats = [name for name in _RASTER_FORMATS if name in Image.OPEN]
    return Image.open(source, formats=formats)  # noqa: TID251


def load_image(source: ImageSource, channel_order: ChannelOrder | None = None) -> np.ndarray:
    """Load an image.

    Args:
        source: see :data:`ImageSource`. Arrays and tensors are uint8 or uint16, gray or of three or
            four channels (the fourth, transparency, is dropped).
        channel_order: required for colour arrays and tensors.

    Returns:
        (H, W, 3) uint8, R, G, B.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image, or the array has another form.
    """
    if isinstance(source, (str, Path)):
        return read_image(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"the PIL image {source!r}"
        return _decode(source, name)
    if isinstance(source, Tensor):
        if source.dim() != 3:
            raise ValueError(
                f"an image tensor is (C, H, W), not {tuple(source.shape)}; pass a list for several"
            )
        source = source.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(source, np.ndarray):
        return rgb_from_array(source, channel_order)
    raise ValueError(
        f"an image is a path, a PIL image, an array or a tensor, not {type(source).__name__}"
    )


def read_image(path: str | Path) -> np.ndarray:
    """Read a file as (H, W, 3) uint8 RGB; errors as in :func:`load_image`."""
    try:
        with PathManager.open(str(path), "rb") as file:
            return _decode(file, path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"image file {str(path)!r} does not exist; check the path"
        ) from None
    except OSError as error:
        raise ValueError(f"the image file {str(path)!r} cannot be opened: {error}") from error


def rgb_from_pil(image: Image.Image) -> np.ndarray:
    """Convert a PIL image of any mode except F to (H, W, 3) uint8 RGB."""
    if image.format == "EPS":
        raise ValueError("PostScript images are not supported; convert them to a raster format")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # PIL's conversion would clip values above 255.
        return rgb_from_array(np.asarray(image), None)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def rgb_from_array(array: np.ndarray, channel_order: ChannelOrder | None) -> np.ndarray:
    """Convert an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to (H, W, 3) uint8 RGB."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"an image array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and a tensor has its "
            f"channels first; this one is {array.shape} (channels last). Pass a list for several"
        )
    array = _to_uint8(array)
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if channel_order not in ("BGR", "RGB"):
        raise ValueError(
            f"channel_order is {channel_order!r}; pass 'BGR' (OpenCV, Detectron2) or 'RGB' "
            "(PIL, torchvision) for a colour array or tensor"
        )
    return array[:, :, 2::-1] if channel_order == "BGR" else array[:, :, :3]


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    # PIL loads some 16 bit files as int32 (mode I).
    low, high = array.min(), array.max()
    if array.dtype in (np.uint16, np.int32) and low >= 0 and high <= np.iinfo(np.uint16).max:
        return (array >> 8).astype(np.uint8)
    raise ValueError(
        f"image values are uint8 (0..255) or uint16 (0..65535), not {array.dtype} with values "
        f"{low}..{high}; convert the image first"
    )


def _decode(source: IO[bytes] | Image.Image, name: str | Path) -> np.ndarray:
    try:
        return rgb_from_pil(source if isinstance(source, Image.Image) else open_image(source))
    except Exception as error:
        # PIL raises many types for damaged files (SyntaxError, EOFError, struct.error, ...).
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{str(name)!r} is not a readable image ({reason}); save it again as PNG or JPEG"
        ) from error
