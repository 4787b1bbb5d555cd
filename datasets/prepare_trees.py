#!/usr/bin/env python
"""Write a dataset of aerial trees in COCO's format, an example for fine-tuning.

    python datasets/prepare_trees.py

cuts the annotated photographs of the Python package deepforest (MIT licence; downloaded with pip,
21 MB, not installed) into tiles, and creates trees/{train,valid} below the directory in the
environment variable DETECTRON2_DATASETS (default: datasets), in Roboflow's layout: images beside
_annotations.coco.json. The splits share no photograph. Fine-tune on it with

    glipv2 finetune --data datasets/trees --minutes 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from PIL import Image

from glipv2_d2.file_writing import atomic_open
from glipv2_d2.images import open_image

PACKAGE = "deepforest==2.1.0"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
"""Of its wheel."""
PHOTOS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "SOAP_061"),
    "valid": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029"),
}
NAME = "tree"
# Side of a tile, and minimum side of a box's part in a tile, in pixels.
TILE = 400
MIN_SIDE = 4


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel or download(Path(folder))
        check_sha256(wheel)
        with zipfile.ZipFile(wheel) as archive:
            for split, photos in PHOTOS.items():
                print(write_split(archive, photos, args.output / split))


def parse_args() -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", type=Path, help=f"downloaded wheel of {PACKAGE}")
    parser.add_argument("--output", type=Path, default=root / "trees", help="default: %(default)s")
    return parser.parse_args()


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    # Wheels only: a source distribution would run code before its hash is checked.
    try:
        subprocess.run([*command, "--only-binary=:all:", PACKAGE], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: pip could not download {PACKAGE}, see above; give its wheel ({error})")
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_sha256(wheel: Path) -> None:
    if not wheel.is_file():
        sys.exit(f"error: {wheel} does not exist: download the wheel of {PACKAGE}")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {wheel} is not the wheel of {PACKAGE}: its sha256 is {digest}")


def write_split(archive: zipfile.ZipFile, photos: tuple[str, ...], folder: Path) -> str:
    """Write the tiles with trees of some photographs; returns a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    coco: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": NAME}],
    }
    for photo in photos:
        with archive.open(f"deepforest/data/{photo}.png") as file:
            image = open_image(file).convert("RGB")
        boxes = read_voc(archive.read(f"deepforest/data/{photo}.xml"))
        for left in range(0, image.width, TILE):
            for top in range(0, image.height, TILE):
                tile = (left, top, min(left + TILE, image.width), min(top + TILE, image.height))
                add_tile(coco, image, boxes, tile, folder / f"{photo}_{left}_{top}.jpg")
    path = folder / "_annotations.coco.json"
    with atomic_open(path) as out:
        out.write(json.dumps(coco).encode())
    return f"{path}: {len(coco['images'])} tiles, {len(coco['annotations'])} trees"


def read_voc(xml: bytes) -> list[tuple[float, float, float, float]]:
    """The boxes (XYXY, pixels) of a file in Pascal VOC's format."""
    return [
        tuple(float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        for box in ET.fromstring(xml).iter("bndbox")
    ]


def add_tile(
    coco: dict[str, list[dict[str, Any]]],
    image: Image.Image,
    boxes: list[tuple[float, float, float, float]],
    tile: tuple[int, int, int, int],
    path: Path,
) -> None:
    """Save a tile with the clipped boxes whose centres are in it, unless it has none."""
    left, top, right, bottom = tile
    visible = []
    for x1, y1, x2, y2 in boxes:
        if left <= (x1 + x2) / 2 < right and top <= (y1 + y2) / 2 < bottom:
            x, y = max(x1, left) - left, max(y1, top) - top
            width, height = min(x2, right) - left - x, min(y2, bottom) - top - y
            if min(width, height) >= MIN_SIDE:
                visible.append([x, y, width, height])
    if not visible:
        return
    image_id = len(coco["images"]) + 1
    image.crop(tile).save(path, quality=95)
    size = {"width": right - left, "height": bottom - top}
    coco["images"].append({"id": image_id, "file_name": path.name, **size})
    for box in visible:
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )


if __name__ == "__main__":
    main()
