#!/usr/bin/env python
"""Draw training samples of a config: image, boxes, prompt and its spans; questions, captions.

    python tools/visualize_data.py --config-file configs/... --output DIR [--num 20]
        [--source annotation | dataloader] [KEY VALUE ...]

``annotation`` draws the records of the dataset, ``dataloader`` the output of the mapper: the
sampled prompt and the resized and flipped image. Class names without a box are grey.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from tqdm import tqdm

from glipv2_d2.data_visualization import draw_sample, loader_samples, stored_samples
from glipv2_d2.engine.setup import load_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--source", choices=("annotation", "dataloader"), default="dataloader")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--num", type=int, default=20, help="number of images (default: 20)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    # Few images are drawn: no loader processes.
    cfg = load_config(args.config_file, ["DATALOADER.NUM_WORKERS", 0, *args.opts])
    samples = {"annotation": stored_samples, "dataloader": loader_samples}[args.source](cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(tqdm(itertools.islice(samples, args.num), total=args.num)):
        draw_sample(sample).save(args.output / f"{number:04d}_{sample.name}.jpg")
    print(f"images are in {args.output}")


if __name__ == "__main__":
    main()
