"""Images, videos and cameras as a stream of frames."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from glipv2_d2.command_line import glob_files, list_files
from glipv2_d2.images import IMAGE_SUFFIXES, decode_image, read_image
from glipv2_d2.remote_files import is_remote, list_remote, open_remote

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


def expand_sources(
    inputs: Sequence[str],
    *,
    recursive: bool = False,
    suffixes: Collection[str] = IMAGE_SUFFIXES | VIDEO_SUFFIXES,
) -> list[str]:
    """The images, videos and cameras that ``inputs`` select, each once.

    Args:
        inputs: files, folders, glob patterns, addresses, ``webcam`` or ``webcam:N``. An address is
            of a file (http, https), or of a file, folder or pattern for fsspec (``s3://...``).
        recursive: also subfolders of folders.
        suffixes: of the files that are taken from folders and, of remote ones, from patterns.

    Returns:
        Also a missing file, and a folder or pattern without images: reading skips them.

    Raises:
        ValueError: none of the inputs has an image or video.
    """
    found = {name: _expand(name, recursive, suffixes) for name in inputs}
    if inputs and not any(found.values()):
        hint = "" if recursive else ", or search the subfolders of a folder: --recursive"
        raise ValueError(f"no image or video in {inputs[0]!r}; pass files or folders{hint}")
    sources = [source for name, of_name in found.items() for source in of_name or [name]]
    return list(dict.fromkeys(sources))


def _expand(name: str, recursive: bool, suffixes: Collection[str]) -> list[str]:
    path = Path(name)
    if is_webcam(name):
        return [name]
    if is_remote(name):
        # A question mark begins the query of an address.
        if name.startswith(_URL_PREFIXES) and not (name.endswith("/") or "*" in name):
            return [name]
        return list_remote(name, suffixes, recursive=recursive)
    if path.is_dir():
        return [str(p) for p in list_files(path, suffixes, recursive=recursive)]
    if not os.path.lexists(path) and glob.has_magic(name):
        return [str(p) for p in glob_files(name, suffixes)]
    return [name]


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
    elif is_remote(source) and not source.startswith(_URL_PREFIXES):
        with open_remote(source) as file:
            yield Frame(source, None, decode_image(file, source))
    else:
        yield Frame(source, None, read_image(source))


def frame_rate(source: str) -> float:
    """Frames per second of a video; 25 if it is unknown."""
    capture = _open_capture(source)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return rate if 1 <= rate <= 1000 else 25.0


def _read_video(source: str, start: int) -> Iterator[Frame]:
    if is_remote(source) and not source.startswith(_URL_PREFIXES):
        raise ValueError(f"video {source!r} cannot be read there; copy it to this machine")
    if not (is_webcam(source) or source.startswith(_URL_PREFIXES) or Path(source).is_file()):
        raise FileNotFoundError(f"video {source!r} does not exist; check the path")
    capture = _open_capture(source)
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
        if number == 0 and is_webcam(source):
            raise ValueError(f"camera {source!r} cannot be opened: connect it, or try webcam:1")
        if number == 0:
            raise ValueError(f"{source!r} is not a video that OpenCV can read; convert it to MP4")
    finally:
        capture.release()


def _open_capture(source: str) -> cv2.VideoCapture:
    """A capture, of which OpenCV and FFmpeg print no diagnosis: the errors here have it."""
    # Read when a video is opened for the first time; -8 is FFmpeg's AV_LOG_QUIET.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(int(source.partition(":")[2] or 0) if is_webcam(source) else source)
    finally:
        cv2.utils.logging.setLogLevel(level)
