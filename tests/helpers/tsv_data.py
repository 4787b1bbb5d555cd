"""TSV files in the format of GLIP and VinVL."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(value: int) -> str:
    """A picture of 32 x 24 pixels of one grey value, in base64."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path: Path, rows: list[list[str]], *, lineidx: bool = True) -> None:
    lines = ["\t".join(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    offsets = np.cumsum([0, *(len(line.encode()) for line in lines)])[:-1]
    if lineidx:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
