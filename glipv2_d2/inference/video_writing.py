"""Write videos atomically."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np


class VideoWriter:
    """An MP4 file of RGB frames; it appears under its name when all are written."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path, self.rate = path, frames_per_second
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, image: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 RGB; all have the size of the first.

        Raises:
            ValueError: OpenCV cannot write videos here.
        """
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._partial), codec, self.rate, self._size)
            if not self._writer.isOpened():
                raise ValueError(f"OpenCV cannot write the video {self.path}; use --no-draw")
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size)
        self._writer.write(np.ascontiguousarray(image[:, :, ::-1]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._partial.exists():
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)
