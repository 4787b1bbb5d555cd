"""Images, videos and cameras as a stream of frames."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from glipv2_d2.images import IMAGE_SUFFIXES, read_image

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}

WEBCAM = "webcam"
"""``webcam`` or ``webcam:N``: a camera of this machine."""

_URL_PREFIXES = ("http://", "https://")


@dataclass(frozen=True)
class Frame:
    """An image, or a frame of a video.

    Attributes:
        source: the path or address.
        number: of the frame, from 0; None for an image.
        image: (H, W, 3) uint8 RGB.
    """

    source: str
    number: int | None
    image: np.ndarray


def expand_sources(inputs: Sequence[str], *, recursive: bool = False) -> list[str]:
    """The images, videos and cameras that ``inputs`` select, each once.

    Args:
        inputs: files, folders, glob patterns, addresses (http, https), ``webcam`` or ``webcam:N``.
        recursive: also subfolders of folders.

    Raises:
        ValueError: a folder or pattern has no image or video. A missing file is returned, so that
            it is skipped like other unreadable files.
    """
    sources: list[str] = []
    for name in inputs:
        path = Path(name)
        if name.startswith(_URL_PREFIXES) or is_webcam(name):
            found = [name]
        elif path.is_dir():
            files = path.rglob("*") if recursive else path.iterdir()
            suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
            found = sorted(str(p) for p in files if p.suffix.lower() in suffixes and p.is_file())
        elif not path.exists() and glob.has_magic(name):
            found = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())
        else:
            found = [name]
        if not found:
            hint = (
                "" if recursive or not path.is_dir() else ", or search its subfolders: --recursive"
            )
            raise ValueError(f"no image or video in {name!r}; pass files or folders{hint}")
        sources += found
    return list(dict.fromkeys(sources))


def is_webcam(source: str) -> bool:
    name, _, number = source.partition(":")
    return name == WEBCAM and (number == "" or number.isdigit()) and not Path(source).exists()


def is_video(source: str) -> bool:
    """Whether a source has frames: a camera, or a file or address with the suffix of a video."""
    plain = source.partition("?")[0] if source.startswith(_URL_PREFIXES) else source
    return is_webcam(source) or Path(plain).suffix.lower() in VIDEO_SUFFIXES


def read_frames(source: str, start: int = 0) -> Iterator[Frame]:
    """The image, or the frames of a video from number ``start``, one at a time.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the image or video cannot be decoded, or the camera cannot be opened.
    """
    if is_video(source):
        yield from _read_video(source, start)
    else:
        yield Frame(source, None, read_image(source))


def frame_rate(source: str) -> float:
    """Frames per second of a video; 25 if it is unknown."""
    capture = cv2.VideoCapture(_capture_argument(source))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return rate if 1 <= rate <= 1000 else 25.0


def _read_video(source: str, start: int) -> Iterator[Frame]:
    if not (is_webcam(source) or source.startswith(_URL_PREFIXES) or Path(source).is_file()):
        raise FileNotFoundError(f"video {source!r} does not exist; check the path")
    capture = cv2.VideoCapture(_capture_argument(source))
    try:
        number = 0
        while True:
            # grab() decodes without the conversion that read() makes.
            if not capture.grab():
                break
            if number >= start:
                ok, image = capture.retrieve()
                if not ok:
                    break
                yield Frame(source, number, np.ascontiguousarray(image[:, :, ::-1]))
            number += 1
        if number == 0:
            raise ValueError(f"{source!r} is not a video or camera that OpenCV can read")
    finally:
        capture.release()


def _capture_argument(source: str) -> str | int:
    return int(source.partition(":")[2] or 0) if is_webcam(source) else source
