"""The one reader of images: files, PIL images, arrays and tensors -> uint8 RGB arrays (H, W, 3).

Training, evaluation, the checks of datasets and :class:`~glipv2_d2.predictor.Predictor` use it, so
that a file has the same pixels everywhere:

- An image is turned upright by its EXIF orientation. Its size, and boxes in it, are those of the
  upright image.
- Transparency is dropped. Of an animation or of several pages, the first image is read.
- 16 bit gray images are scaled to 8 bits. Floats and 32 bit integers have no known range: an error.
"""

from __future__ import annotations

import codecs
import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

T = TypeVar("T")

ImageSource = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, an array (H, W[, C]) or a tensor (C, H, W)."""

IMAGE_SOURCES = (str, Path, Image.Image, np.ndarray, Tensor)

ChannelOrder = Literal["BGR", "RGB"]

_RASTER_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")

IMAGE_SUFFIXES = frozenset(
    {".avif", ".avifs", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg"}
    | {".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes of image files, in lower case. The content decides about the format."""

# Formats whose 16 bit images PIL loads as 32 bit integers, scaled to 0..65535.
_16_BIT_AS_INT32 = ("PNG", "PPM")

# EXIF orientation -> how the stored image is turned upright.
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# First bytes, in lower case, of files that often have the suffix of an image.
_OTHER_FILES = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file, perhaps an SVG drawing",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


class ChannelOrderError(ValueError):
    """The channel order of a colour array is not given. An error of the call, not of the image."""


def open_image(source: str | Path | IO[bytes]) -> Image.Image:
    """Open an image file of a raster format with Pillow.

    Use this in place of ``Image.open``, which tries all formats of Pillow: a PostScript file of any
    name starts Ghostscript and may write files. The image is as stored; :func:`read_image` also
    turns it upright.

    Raises:
        OSError: the file is missing, or not of a raster format.
    """
    return Image.open(source, formats=_installed_formats())  # noqa: TID251


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    """The raster formats that Pillow can open; HEIF if the package pillow-heif is installed."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return tuple(name for name in _RASTER_FORMATS if name in Image.OPEN)


def load_image(source: ImageSource, channel_order: ChannelOrder | None = None) -> np.ndarray:
    """Load an image.

    Args:
        source: see :data:`ImageSource`. Arrays and tensors are uint8 or uint16, gray or of three or
            four channels (the fourth, transparency, is dropped). A PIL image with an EXIF
            orientation is turned upright like a file.
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
        try:
            return _rgb_from_pil(source)
        except Exception as error:
            name = getattr(source, "filename", "") or f"the PIL image {source!r}"
            raise _unreadable(str(name), error) from error
    if isinstance(source, Tensor):
        source = _to_array(source)
    if isinstance(source, np.ndarray):
        return _rgb_from_array(source, channel_order)
    raise ValueError(
        f"an image is a path, a PIL image, an array or a tensor, not {type(source).__name__}"
    )


def read_image(path: str | Path, channel_order: ChannelOrder = "RGB") -> np.ndarray:
    """Read a file as (H, W, 3) uint8 in a channel order; errors as in :func:`load_image`."""
    return in_channel_order(
        _read(path, lambda file: _rgb_from_pil(open_image(file))), channel_order
    )


def decode_image(file: IO[bytes], name: str, *, max_pixels: int | None = None) -> np.ndarray:
    """Decode an open file as (H, W, 3) uint8 RGB; errors as in :func:`load_image`.

    Args:
        name: of the file, for the errors.
        max_pixels: of the image; a larger one is not decoded.
    """

    def decode(opened: IO[bytes]) -> np.ndarray:
        image = open_image(opened)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise Image.DecompressionBombError(f"{width} x {height}, more than {max_pixels}")
        return _rgb_from_pil(image)

    return _decode(file, name, decode)


def image_size(path: str | Path) -> tuple[int, int]:
    """The (height, width) of the upright image of a file; errors as in :func:`load_image`.

    The pixels are decoded only if the image is stored turned: otherwise, they may be damaged.
    """
    return _read(path, _upright_size)


def in_channel_order(image: np.ndarray, channel_order: str) -> np.ndarray:
    """A view of an RGB image (H, W, 3) in the channel order of ``INPUT.FORMAT``."""
    if channel_order not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT is {channel_order!r}; use 'BGR' or 'RGB'")
    return image[:, :, ::-1] if channel_order == "BGR" else image


def _read(path: str | Path, decode: Callable[[IO[bytes]], T]) -> T:
    """Open a file and decode it; every error names the file."""
    name = str(path)
    try:
        _check_is_regular_file(name)
        # Also opens members of tar files.
        file = PathManager.open(name, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"image file {name!r} does not exist; check the path, or the dataset's image directory"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the image file {name!r} cannot be opened: {reason}") from error
    with file:
        return _decode(file, name, decode)


def _decode(file: IO[bytes], name: str, decode: Callable[[IO[bytes]], T]) -> T:
    try:
        return decode(file)
    # PIL raises many types for damaged files: SyntaxError, EOFError, struct.error and others.
    except Exception as error:
        raise _unreadable(name, error, file) from error


def _check_is_regular_file(name: str) -> None:
    """Raise an OSError for a folder, and for a pipe or device, which might be read forever."""
    try:
        mode = os.stat(name).st_mode
    # No local file, or no path at all.
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")


def _unreadable(name: str, error: Exception, file: IO[bytes] | None = None) -> ValueError:
    """The error of an image that cannot be decoded, with a remedy."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        size = str(error).partition(", could be")[0]
        return ValueError(f"{name!r} has too many pixels ({size}); cut it into tiles or shrink it")
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = _content(file) if file is not None else "unknown format"
    return ValueError(
        f"{name!r} is not a readable image ({reason}); save it again as PNG or JPEG, or remove it"
    )


def _content(file: IO[bytes]) -> str:
    """What a file of unknown format is, from its first bytes."""
    file.seek(0)
    start = file.read(64)
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp" and start[8:12] in _AVIF_BRANDS and "AVIF" not in _installed_formats():
        return "AVIF, which this version of Pillow cannot read: pip install -U pillow"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and "HEIF" not in _installed_formats():
        return "HEIC, which needs a package: pip install pillow-heif (extra: heic)"
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next(
        (kind for begin, kind in _OTHER_FILES.items() if text.startswith(begin)),
        "unknown or damaged format",
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, if the EXIF data is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # The pixels are readable all the same. PIL raises many types for damaged data.
    except Exception:
        return 1


def _upright_size(file: IO[bytes]) -> tuple[int, int]:
    with open_image(file) as image:
        # Pillow reports the upright size of some turned images (TIFF), the stored one of others.
        if _orientation(image) in _TO_UPRIGHT:
            height, width, _ = _rgb_from_pil(image).shape
            return height, width
        return image.height, image.width


def _rgb_from_pil(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to an upright array (H, W, 3), uint8 RGB."""
    if image.format == "EPS":
        raise ValueError("PostScript images are not supported; convert them to a raster format")
    _load(image)
    mode, image_format = image.mode, image.format
    if mode == "F" or (mode == "I" and image_format not in _16_BIT_AS_INT32):
        kind = "floats" if mode == "F" else "32 bit integers"
        raise ValueError(f"its pixels are {kind} of unknown range; save it with 8 or 16 bits")
    orientation = _orientation(image)
    if orientation in _TO_UPRIGHT:
        image = image.transpose(_TO_UPRIGHT[orientation])
    if mode.startswith("I"):
        # PIL's conversion would clip values above 255.
        return _rgb_from_array(np.asarray(image).astype(np.uint16), None)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return _rgb_from_array(np.asarray(image.convert("RGB")), "RGB")


def _load(image: Image.Image) -> None:
    """Decode an image; a TIFF is then upright and has no orientation."""
    # Pillow maps a file with a name into memory, and swaps the sides of turned TIFFs before.
    name = getattr(image, "filename", "")
    if name:
        image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        if name:
            image.filename = name  # type: ignore[attr-defined]


def _to_array(tensor: Tensor) -> np.ndarray:
    """A tensor (C, H, W) as an array (H, W, C)."""
    if tensor.dim() != 3:
        raise ValueError(
            f"an image tensor is (C, H, W), not {tuple(tensor.shape)}; pass a list for several"
        )
    if tensor.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"image values are uint8 or uint16, not {tensor.dtype}; convert the image")
    return tensor.detach().cpu().permute(1, 2, 0).numpy()


def _rgb_from_array(array: np.ndarray, channel_order: ChannelOrder | None) -> np.ndarray:
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
        raise ChannelOrderError(
            f"channel_order is {channel_order!r}; pass 'BGR' (OpenCV, Detectron2) or 'RGB' "
            "(PIL, torchvision) for a colour array or tensor"
        )
    return array[:, :, 2::-1] if channel_order == "BGR" else array[:, :, :3]


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    # Of either byte order.
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    values = f" with values {array.min()}..{array.max()}" if array.dtype.kind in "biuf" else ""
    raise ValueError(
        f"image values are uint8 (0..255) or uint16 (0..65535), not {array.dtype}{values}; convert "
        "the image first"
    )
