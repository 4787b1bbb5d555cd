from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from PIL import EpsImagePlugin, Image

from glipv2_d2.images import (
    IMAGE_SUFFIXES,
    decode_image,
    image_size,
    in_channel_order,
    load_image,
    open_image,
    read_image,
)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_all_sources_of_an_image_give_the_same_array(rgb, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    bgr = rgb[:, :, ::-1]
    sources = [
        (str(path), None),
        (path, None),
        (Image.fromarray(rgb), None),
        (rgb, "RGB"),
        (bgr, "BGR"),
        (rgb.astype(np.uint16) << 8, "RGB"),
        (np.dstack([bgr, bgr[:, :, 0]]), "BGR"),
        (torch.from_numpy(rgb).permute(2, 0, 1), "RGB"),
        (torch.from_numpy(bgr.copy()).permute(2, 0, 1), "BGR"),
    ]
    for source, channel_order in sources:
        np.testing.assert_array_equal(load_image(source, channel_order), rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_in_detectron2(rgb, tmp_path, orientation):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), detection_utils.read_image(str(path), "RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_8_bit_modes_are_loaded_as_in_detectron2(rgb, tmp_path, mode):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).convert(mode).save(path)
    np.testing.assert_array_equal(load_image(path), detection_utils.read_image(str(path), "RGB"))


def test_a_palette_with_transparent_entries_keeps_its_colours(rgb, tmp_path, recwarn):
    path = tmp_path / "a.png"
    palette = Image.fromarray(rgb).convert("P")
    palette.save(path, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(load_image(path), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


def test_a_16_bit_file_keeps_its_range(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16)).save(path)
    assert load_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_gray_arrays_need_no_channel_order():
    gray = np.array([[7, 9]], dtype=np.uint8)
    assert load_image(gray).tolist() == load_image(gray[:, :, None]).tolist()
    assert load_image(gray).tolist() == [[[7, 7, 7], [9, 9, 9]]]


@pytest.mark.parametrize("order", [None, "bgr", "HWC"])
def test_a_colour_array_without_a_channel_order_raises_an_error(rgb, order):
    with pytest.raises(ValueError, match=rf"channel_order is {order!r}.*'BGR'.*'RGB'"):
        load_image(rgb, order)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),  # 0..1 or 0..255?
        (np.zeros((4, 4), bool), "bool"),
        (np.full((4, 4), -1, np.int32), "-1..-1"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\).*list"),  # a batch
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"\(4, 4\)"),
    ],
)
def test_an_unsupported_array_raises_an_error_with_its_type(array, message):
    with pytest.raises(ValueError, match=message):
        load_image(array, "RGB")


def test_a_missing_file_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.png.*check the path"):
        load_image(tmp_path / "nothing.png")


def test_damaged_files_raise_an_error(rgb, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(rgb.repeat(20, 0).repeat(20, 1)).save(whole)
    contents = {
        "empty.png": b"",
        "page.jpg": b"<html>not found</html>",
        "cut.jpg": whole.read_bytes()[:1500],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*not a readable image"):
            load_image(tmp_path / name)


def test_a_float_image_raises_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    with pytest.raises(ValueError, match="depth.tiff.*8 or 16 bits"):
        load_image(path)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
"""


@pytest.fixture
def postscript_named_jpg(tmp_path, monkeypatch) -> Path:
    """A PostScript file named .jpg, and on PATH a ``gs`` that creates a file when it runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    gs = programs / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path / 'gs_was_started'}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    path.write_bytes(POSTSCRIPT)
    return path


def test_pillow_would_start_ghostscript_for_this_file(postscript_named_jpg, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with suppress(OSError):
        Image.open(postscript_named_jpg).load()
    assert (postscript_named_jpg.parent / "gs_was_started").exists()


@pytest.mark.parametrize(
    "read",
    [load_image, read_image, image_size, open_image],
)
def test_a_postscript_file_named_jpg_starts_no_program(postscript_named_jpg, monkeypatch, read):
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises((OSError, ValueError), match="photo.jpg"):
        read(postscript_named_jpg)
    assert not (postscript_named_jpg.parent / "gs_was_started").exists()


def test_a_postscript_image_opened_by_the_caller_starts_no_program(
    postscript_named_jpg, monkeypatch
):
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(ValueError, match="PostScript"):
        load_image(Image.open(postscript_named_jpg))
    assert not (postscript_named_jpg.parent / "gs_was_started").exists()


def test_the_suffixes_of_images_are_those_of_the_formats_and_of_heic():
    Image.init()
    formats = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")
    known = {suffix for suffix, name in Image.EXTENSION.items() if name in formats}
    # Animated PNG, device-independent bitmaps and float maps are rare.
    assert known - IMAGE_SUFFIXES <= {".apng", ".dib", ".pfm"}
    assert {".heic", ".heif", ".hif"} <= IMAGE_SUFFIXES


def test_an_unknown_channel_order_of_the_config_raises_an_error(rgb):
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'YUV'.*'BGR' or 'RGB'"):
        in_channel_order(rgb, "YUV")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif", "a.bmp", "a.ppm"])
def test_all_raster_formats_are_loaded(rgb, tmp_path, name):
    Image.fromarray(rgb).save(tmp_path / name)
    assert load_image(tmp_path / name).shape == rgb.shape
    assert image_size(tmp_path / name) == rgb.shape[:2]


def test_the_content_of_a_file_is_decoded_as_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    decoded = decode_image(io.BytesIO(path.read_bytes()), "upload", max_pixels=54)
    np.testing.assert_array_equal(decoded, read_image(path))
    with pytest.raises(ValueError, match="'upload' has too many pixels .9 x 6, more than 53"):
        decode_image(io.BytesIO(path.read_bytes()), "upload", max_pixels=53)
    with pytest.raises(ValueError, match="'upload' is not a readable image"):
        decode_image(io.BytesIO(path.read_bytes()[:40]), "upload")
