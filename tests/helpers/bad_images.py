"""Image files as people have them: five that are read, and twenty that are not."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NOT_UTF8 = os.fsdecode(b"\xe9t\xe9.png")


def write_good_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Write five images; returns the (height, width) of each upright image by its name."""
    rgb = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rgb).save(folder / "photo.jpg")
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(rgb[:, :, 0].astype(np.uint16) << 8).save(folder / "deep.png")
    Image.new("1", (400_000, 1)).save(folder / "strip.png")
    Image.fromarray(rgb).save(folder / NOT_UTF8)
    sizes = {"deep.png": (20, 32), "strip.png": (1, 400_000), NOT_UTF8: (20, 32)}
    return {"photo.jpg": (20, 32), "turned.jpg": (32, 20), **sizes}


def write_bad_images(folder: Path) -> dict[str, str]:
    """Write twenty files that are no images; returns a part of the error of each by its name."""
    contents = {
        "empty.jpg": (b"", "file is empty"),
        "page.jpg": (b"<!DOCTYPE html><p>404", "web page"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        "document.jpg": (b"%PDF-1.7\n", "PDF"),
        "script.jpg": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
            "PostScript",
        ),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "noise.webp": (bytes(range(256)), "unknown or damaged"),
        "header.bmp": (b"BM", "not a readable image"),
        "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(12), "pillow-heif"),
        "bomb.png": (png_header(30_000, 30_000), "too many pixels.*tiles or shrink"),
        "no_pixels.png": (png_header(0, 5), "not a readable image"),
        "two\nlines.jpg": (b"?", "unknown or damaged"),
        os.fsdecode(b"b\xe4d.jpg"): (b"?", "unknown or damaged"),
        "cut.jpg": (_saved("JPEG")[:-400], "truncated"),
        "cut.png": (_saved("PNG")[:-400], "truncated"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(folder / "depth.tif")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "endless.png").symlink_to("/dev/zero")
    others = {
        "depth.tif": "floats of unknown range.*8 or 16 bits",
        "folder.png": "it is a folder",
        "pipe.jpg": "it is a pipe",
        "loop.jpg": "symbolic links",
        "endless.png": "device",
    }
    return {name: message for name, (_, message) in contents.items()} | others


def png_header(width: int, height: int) -> bytes:
    """A PNG file of the given size, without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _saved(image_format: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()
