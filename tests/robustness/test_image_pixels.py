"""Every part of the project reads the same pixels from a file."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.bad_images import png_header
from helpers.models import tiny_cfg
from PIL import Image, TiffImagePlugin

from glipv2_d2 import images
from glipv2_d2.data.checks import check_images, no_progress
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.readers.openimages import image_sizes
from glipv2_d2.images import image_size, load_image, open_image, read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY16 = np.random.default_rng(1).integers(0, 65536, (6, 9), dtype=np.uint16)
GRAY16_AS_RGB = (GRAY16 >> 8).astype(np.uint8)[:, :, None].repeat(3, axis=2)
PIL_RGB = Image.fromarray(RGB)


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def as_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def turned(image: Image.Image, image_format: str, orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    return saved(image, image_format, exif=exif, **options)


def gray16(image_format: str) -> bytes:
    return saved(Image.fromarray(GRAY16), image_format)


PALETTE = PIL_RGB.convert("P")
ONE_BIT = PIL_RGB.convert("1")
RGBA = np.dstack([RGB, RGB[:, :, 0]])
BIG_ENDIAN = Image.frombytes("I;16B", (9, 6), GRAY16.astype(">u2").tobytes())
# A turn by 90 degrees clockwise makes orientation 6 upright.
CLOCKWISE = -1

# Name: content, and the right pixels.
FILES = {
    "gray16.png": (gray16("PNG"), GRAY16_AS_RGB),
    "gray16.tif": (gray16("TIFF"), GRAY16_AS_RGB),
    "big_endian.tif": (saved(BIG_ENDIAN, "TIFF"), GRAY16_AS_RGB),
    "gray16.pgm": (b"P5 9 6 65535\n" + GRAY16.astype(">u2").tobytes(), GRAY16_AS_RGB),
    "gray16_key.png": (saved(Image.fromarray(GRAY16), "PNG", transparency=5), GRAY16_AS_RGB),
    "palette.png": (saved(PALETTE, "PNG"), as_rgb(PALETTE)),
    "palette_key.png": (saved(PALETTE, "PNG", transparency=bytes([0, 9])), as_rgb(PALETTE)),
    "cmyk.tif": (saved(PIL_RGB.convert("CMYK"), "TIFF"), as_rgb(PIL_RGB.convert("CMYK"))),
    "alpha.png": (saved(Image.fromarray(RGBA), "PNG"), RGB),
    "alpha.webp": (saved(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), RGB),
    "one_bit.png": (saved(ONE_BIT, "PNG"), as_rgb(ONE_BIT)),
    "one_bit.tif": (saved(ONE_BIT, "TIFF"), as_rgb(ONE_BIT)),
    "la.png": (saved(PIL_RGB.convert("LA"), "PNG"), as_rgb(PIL_RGB.convert("L"))),
    "animated.gif": (
        saved(ONE_BIT, "GIF", save_all=True, append_images=[Image.new("1", (9, 6), 1)]),
        as_rgb(ONE_BIT),
    ),
    "animated.png": (
        saved(PIL_RGB, "PNG", save_all=True, append_images=[Image.new("RGB", (9, 6))]),
        RGB,
    ),
    "animated.webp": (
        saved(PIL_RGB, "WEBP", lossless=True, save_all=True, append_images=[ONE_BIT]),
        RGB,
    ),
    "pages.tif": (saved(PIL_RGB, "TIFF", save_all=True, append_images=[ONE_BIT]), RGB),
    "turned.png": (turned(PIL_RGB, "PNG"), np.rot90(RGB, CLOCKWISE)),
    "turned.webp": (turned(PIL_RGB, "WEBP"), np.rot90(RGB, CLOCKWISE)),
    "turned.tif": (turned(PIL_RGB, "TIFF"), np.rot90(RGB, CLOCKWISE)),
    "mirrored.png": (turned(PIL_RGB, "PNG", 2), RGB[:, ::-1]),
    "turned_deep.tif": (turned(BIG_ENDIAN, "TIFF"), np.rot90(GRAY16_AS_RGB, CLOCKWISE)),
    "no_such_turn.png": (turned(PIL_RGB, "PNG", 99), RGB),
    "turn_0.png": (turned(PIL_RGB, "PNG", 0), RGB),
    "turn_9.png": (turned(PIL_RGB, "PNG", 9), RGB),
    "damaged_exif.png": (saved(PIL_RGB, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff"), RGB),
    "png_named.jpg": (saved(PIL_RGB, "PNG"), RGB),
}

# Files whose range of values is unknown: refused everywhere, never black or white.
REFUSED = {
    "float.tif": (saved(Image.fromarray(GRAY16.astype(np.float32)), "TIFF"), "floats"),
    "int32.tif": (saved(Image.fromarray(GRAY16.astype(np.int32)), "TIFF"), "32 bit integers"),
}


@pytest.fixture(scope="module")
def mapper() -> GroundingMapper:
    """Of evaluation, without a resize."""
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 0, "INPUT.FORMAT", "BGR")
    return GroundingMapper(cfg, is_train=False, class_names={"": ["cat"]})


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_right_pixels_everywhere(
    name: str, mapper: GroundingMapper, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    content, expected = FILES[name]
    path = write(tmp_path, name, content)
    height, width = expected.shape[:2]
    record = {"file_name": str(path), "height": height, "width": width}
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(load_image(str(path)), expected)
    with open_image(path) as image:
        np.testing.assert_array_equal(load_image(image), expected)
    in_training = mapper(record)["image"].numpy()[::-1].transpose(1, 2, 0)
    np.testing.assert_array_equal(in_training, expected)
    faults = Faults()
    check_images([record], faults, progress=no_progress, label="", max_image_size=1333)
    assert not faults and image_size(path) == (height, width)
    assert not recwarn.list


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_of_unknown_range_are_refused_everywhere(
    name: str, mapper: GroundingMapper, tmp_path: Path
) -> None:
    content, message = REFUSED[name]
    path = write(tmp_path, name, content)
    for read in (read_image, load_image, lambda path: load_image(open_image(path))):
        with pytest.raises(ValueError, match=f"{name}.*{message} of unknown range"):
            read(path)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        mapper({"file_name": str(path)})
    faults = Faults()
    check_images(
        [{"file_name": str(path)}], faults, progress=no_progress, label="", max_image_size=1333
    )
    assert name in faults.examples["image-does-not-open"][0]


def test_openimages_sizes_are_those_of_upright_images(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", turned(PIL_RGB, "JPEG"))
    write(tmp_path, "b.jpg", b"%PDF")
    assert image_sizes(["a", "b"], str(tmp_path), tmp_path / "sizes.csv") == {"a": (9, 6)}


def test_a_16_bit_array_of_the_other_byte_order_has_the_same_pixels() -> None:
    for order in "<>":
        np.testing.assert_array_equal(load_image(GRAY16.astype(f"{order}u2")), GRAY16_AS_RGB)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = write(tmp_path, "bomb.png", png_header(20_000, 20_000))
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match="bomb.png.*too many pixels.*400000000.*tiles.*shrink"):
            read(path)


def test_an_unsupported_pixel_type_is_no_crash(tmp_path: Path) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[TiffImagePlugin.BITSPERSAMPLE] = 64
    path = write(
        tmp_path, "float64.tif", saved(Image.fromarray(RGB[:, :, 0]), "TIFF", tiffinfo=info)
    )
    content = path.read_bytes()
    bits = struct.pack("<HHII", 258, 3, 1, 8)
    assert bits in content
    path.write_bytes(content.replace(bits, struct.pack("<HHII", 258, 3, 1, 64)))
    with pytest.raises(ValueError, match="float64.tif.*unknown or damaged format"):
        read_image(path)


def test_heic_is_read_if_pillow_heif_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opener(file: Any, filename: str) -> Image.Image:
        return Image.new("RGB", (9, 6), "red")

    package = ModuleType("pillow_heif")
    package.register_heif_opener = (
        lambda: Image.register_open(  # type: ignore[attr-defined]
            "HEIF", opener, lambda start: start[4:12] == b"ftypheic"
        )
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    images._installed_formats.cache_clear()
    try:
        path = write(tmp_path, "phone.heic", b"\0\0\0\x18ftypheic" + bytes(12))
        assert read_image(path)[0, 0].tolist() == [255, 0, 0]
    finally:
        Image.OPEN.pop("HEIF")
        Image.ID.remove("HEIF")
        images._installed_formats.cache_clear()
