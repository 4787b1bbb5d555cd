#!/usr/bin/env python
"""Draw training samples of a config: image, boxes, prompt and its spans; questions, captions.

    python tools/visualize_data.py --config-file configs/... --output DIR [--num 20]
        [--source annotation | dataloader] [KEY VALUE ...]

``annotation`` draws the records of the dataset, ``dataloader`` the output of the mapper: the
sampled prompt and the resized and flipped image. Class names without a box are grey. Images are
upright; those that cannot be read or drawn are skipped with a warning.

Exit status: 0 all drawn, 1 some could not be drawn or written, 2 the command failed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from glipv2_d2.batch_prediction import shorten_stem, write_jpeg
from glipv2_d2.command_line import (
    check_output_folder,
    escape_unprintable_output,
    printable,
    report_failure,
)
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


def run(args: argparse.Namespace) -> list[str]:
    """Draw the samples; returns an error message for each that could not be drawn or written."""
    check_output_folder(args.output, "--output")
    # Few images are drawn: no loader processes.
    cfg = load_config(args.config_file, ["DATALOADER.NUM_WORKERS", 0, *args.opts])
    samples = {"annotation": stored_samples, "dataloader": loader_samples}[args.source](cfg)
    errors = []
    for number, sample in enumerate(tqdm(itertools.islice(samples, args.num), total=args.num)):
        path = args.output / f"{shorten_stem(f'{number:04d}_{sample.name}')}.jpg"
        try:
            write_jpeg(np.asarray(draw_sample(sample)), path)
        # Matplotlib, PIL and the disk raise many kinds; the other samples are drawn.
        except Exception as error:
            errors.append(f"{str(path)!r} cannot be drawn or written: {error}")
    return errors


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    escape_unprintable_output()
    setup_logger(name="glipv2_d2")
    try:
        errors = run(args)
    except Exception as error:
        return report_failure(error)
    print(f"images are in {printable(args.output)}")
    for message in errors:
        print(f"skipped: {message}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
