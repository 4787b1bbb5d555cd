"""A dataset of a few noise images in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("cat", "traffic light", "hot_dog_(food)")


def write_coco(
    folder: Path, *, num_images: int = 4, names: Sequence[str] = NAMES, size: int = 48
) -> tuple[Path, Path]:
    """Write noise images with one box each; image i has class i modulo the number of names.

    Image i is ``size`` + i pixels wide and ``size`` pixels high.

    Returns:
        The annotation file and the image folder.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {
        # Category ids with gaps, as COCO's.
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)],
        "images": [],
        "annotations": [],
    }
    for i in range(num_images):
        width, height = size + i, size
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        content["images"].append(
            {"id": i, "file_name": f"{i}.png", "width": width, "height": height}
        )
        content["annotations"].append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 10 * (i % len(names) + 1),
                "bbox": [4, 6, 20, 16],
                "area": 320,
                "iscrowd": 0,
            }
        )
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content))
    return annotations, images
