#!/usr/bin/env python
"""Write LVIS v1's minival, the images of its validation set that are in COCO's validation set.

    python datasets/prepare_lvis_minival.py

reads lvis/lvis_v1_val.json and creates lvis/lvis_v1_minival.json below the directory in the
environment variable DETECTRON2_DATASETS (default: datasets).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from glipv2_d2.data.readers.lvis import minival_subset
from glipv2_d2.file_writing import atomic_open, dump_json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    directory = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "lvis"
    source, target = directory / "lvis_v1_val.json", directory / "lvis_v1_minival.json"
    if not source.is_file():
        raise SystemExit(f"error: {source} does not exist: see datasets/README.md#lvis")
    minival = minival_subset(json.loads(source.read_text(encoding="utf-8")))
    with atomic_open(target) as file:
        file.write(dump_json(minival).encode())
    print(f"{target}: {len(minival['images'])} images")


if __name__ == "__main__":
    main()
