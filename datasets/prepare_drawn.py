#!/usr/bin/env python
"""Write scenes of drawn shapes ("red circle", "blue star"); needs no download."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from glipv2_d2.data.drawn import base_cutouts, drawn_cutouts, novel_cutouts, write_drawn


def main() -> None:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=root / "drawn", help="default: %(default)s")
    parser.add_argument(
        "--num-train", type=int, default=400, help="scenes of train and base, default: %(default)s"
    )
    parser.add_argument(
        "--num-val", type=int, default=100, help="scenes of val and novel, default: %(default)s"
    )
    parser.add_argument("--size", type=int, default=320, help="pixels a side, default: %(default)s")
    args = parser.parse_args()
    # The index of a split is its seed.
    splits = {
        "train": (args.num_train, drawn_cutouts),
        "val": (args.num_val, drawn_cutouts),
        "base": (args.num_train, base_cutouts),
        "novel": (args.num_val, novel_cutouts),
    }
    for seed, (split, (count, load_cutouts)) in enumerate(splits.items()):
        file = write_drawn(
            args.output,
            split=split,
            num_images=count,
            size=args.size,
            seed=seed,
            load_cutouts=load_cutouts,
        )
        print(f"{split}: {count} scenes, annotations in {file}")


if __name__ == "__main__":
    main()
