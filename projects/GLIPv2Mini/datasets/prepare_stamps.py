#!/usr/bin/env python
"""Compose scenes of Tux Paint's photo cut-outs: the data of glipv2-mini.

The cut-outs (GPL-2) are taken from Debian's package tuxpaint-stamps-default 2022.06.04-1, which is
downloaded with apt-get where neither --stamps nor --deb is given. They stay outside the project.

Splits: train; seen (trained names and cut-outs, new layouts and other photographs behind them);
seen_new_cutouts (trained names, cut-outs kept out of training); novel (names never trained).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from glipv2_d2.data.composed_dataset import SceneSplit
from glipv2_mini.data.backgrounds import TEST_PHOTOS, TRAIN_PHOTOS, PhotoBackground
from glipv2_mini.data.cutouts import StampLoader, stamp_entries
from glipv2_mini.data.scene_dataset import scene_questions, write_scenes
from glipv2_mini.data.scene_text import noun_phrase

PACKAGE = "tuxpaint-stamps-default"
PACKAGE_SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
STAMPS_IN_PACKAGE = "usr/share/tuxpaint/stamps"


def main() -> None:
    args = parse_args()
    stamps = args.stamps or extract(args.deb or download(args.output), args.output)
    for split in splits(stamps, args):
        file = write_scenes(split, args.output, workers=args.workers)
        print(
            f"{split.name}: {len(split.category_names)} names, annotations in {file}, questions, "
            "answers and referring phrases beside it"
        )


def parse_args() -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stamps", type=Path, help="the stamps' directory, if they are installed")
    parser.add_argument("--deb", type=Path, help=f"the file of {PACKAGE}, if it is downloaded")
    parser.add_argument("--output", type=Path, default=root / "stamps", help="default: %(default)s")
    parser.add_argument("--num-train", type=int, default=6000, help="default: %(default)s")
    parser.add_argument("--num-test", type=int, default=500, help="of each test split, %(default)s")
    parser.add_argument("--size", type=int, default=320, help="pixels a side, default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args()


def splits(stamps: Path, args: argparse.Namespace) -> list[SceneSplit]:
    """The four splits. Their seeds differ, so that no two share a layout."""
    entries = stamp_entries()
    trained = sorted({entry.name for entry in entries if entry.use == "train"})
    novel = sorted({entry.name for entry in entries if entry.use == "novel"})
    size = (args.size, args.size)

    def split(name: str, count: int, seed: int, names: list[str], use: str) -> SceneSplit:
        return SceneSplit(
            name=name,
            num_images=count,
            size=size,
            seed=seed,
            category_names=names,
            load_cutouts=StampLoader(stamps, (use,)),
            make_background=PhotoBackground(TRAIN_PHOTOS if name == "train" else TEST_PHOTOS),
            noun_phrase=noun_phrase,
            make_questions=scene_questions,
        )

    return [
        split("train", args.num_train, 1, trained, "train"),
        split("seen", args.num_test, 2, trained, "train"),
        split("seen_new_cutouts", args.num_test, 3, trained, "heldout"),
        split("novel", args.num_test, 4, novel, "novel"),
    ]


def download(directory: Path) -> Path:
    """Fetch the Debian package into ``directory`` with apt-get, which needs no root for this."""
    directory.mkdir(parents=True, exist_ok=True)
    found = sorted(directory.glob(f"{PACKAGE}_*.deb"))
    if not found:
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=directory, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            sys.exit(
                f"apt-get could not download {PACKAGE} ({error}). Run `apt-get update` as root "
                "first, or get the package's .deb by hand and give it with --deb"
            )
        found = sorted(directory.glob(f"{PACKAGE}_*.deb"))
    return found[-1]


def extract(package: Path, directory: Path) -> Path:
    """Unpack the checked package; returns the stamps' directory."""
    stamps = directory / "cutouts" / STAMPS_IN_PACKAGE
    if stamps.is_dir():
        return stamps
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest != PACKAGE_SHA256:
        sys.exit(
            f"{package} is not the version that the list of names was made for "
            f"(sha256 {digest}, expected {PACKAGE_SHA256}): get {PACKAGE} 2022.06.04-1"
        )
    partial = directory / "cutouts.partial"
    subprocess.run(["dpkg", "-x", str(package), str(partial)], check=True)
    partial.rename(directory / "cutouts")
    return stamps


if __name__ == "__main__":
    main()
