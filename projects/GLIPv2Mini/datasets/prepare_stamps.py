#!/usr/bin/env python
"""Compose scenes of Tux Paint's photo cut-outs on photographs: the data of glipv2-mini.

The cut-outs (GPL-2) and the photographs behind them are taken from three Debian packages, which are
downloaded with apt-get where --packages does not have them. They stay outside the project.

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
from glipv2_d2.data.composition import PHOTO_STYLE
from glipv2_mini.data import debian_packages
from glipv2_mini.data.backgrounds import PhotoBackground
from glipv2_mini.data.cutouts import StampLoader, stamp_entries
from glipv2_mini.data.scene_dataset import scene_questions, write_scenes
from glipv2_mini.data.scene_text import noun_phrase

STAMPS_PACKAGE = "tuxpaint-stamps-default"
STAMPS_IN_PACKAGE = "usr/share/tuxpaint/stamps"
# Name -> version and sha256 of the package's file.
PACKAGES = {
    STAMPS_PACKAGE: (
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
    "mate-backgrounds": (
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
    ),
    "plasma-workspace-wallpapers": (
        "4:5.27.5-2",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ),
}
SIZES = (
    *((416, 312), (312, 416), (416, 416)),
    *((416, 277), (277, 416), (416, 234)),
)
"""(w, h) of the scenes in pixels: 4:3, 1:1, 3:2 and 16:9."""


def main() -> None:
    args = parse_args()
    needed = [name for name in PACKAGES if name != STAMPS_PACKAGE or args.stamps is None]
    packages = args.packages or args.output / "packages"
    root = extract([find_package(packages, name) for name in needed], args.output / "unpacked")
    for split in splits(args.stamps or root / STAMPS_IN_PACKAGE, root, args):
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
    parser.add_argument(
        "--packages",
        type=Path,
        help="directory of downloaded .deb files; missing ones are added (default: below --output)",
    )
    parser.add_argument("--output", type=Path, default=root / "stamps", help="default: %(default)s")
    parser.add_argument("--num-train", type=int, default=6000, help="default: %(default)s")
    parser.add_argument("--num-test", type=int, default=300, help="of each test split, %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args()


def splits(stamps: Path, photos: Path, args: argparse.Namespace) -> list[SceneSplit]:
    """The four splits. Their seeds differ, so that no two share a layout."""
    entries = stamp_entries()
    trained = sorted({entry.name for entry in entries if entry.use == "train"})
    novel = sorted({entry.name for entry in entries if entry.use == "novel"})

    def split(name: str, count: int, seed: int, names: list[str], use: str) -> SceneSplit:
        return SceneSplit(
            name=name,
            num_images=count,
            sizes=SIZES,
            seed=seed,
            category_names=names,
            load_cutouts=StampLoader(stamps, (use,)),
            style=PHOTO_STYLE,
            make_background=PhotoBackground("train" if name == "train" else "test", photos),
            noun_phrase=noun_phrase,
            make_questions=scene_questions,
        )

    return [
        split("train", args.num_train, 1, trained, "train"),
        split("seen", args.num_test, 2, trained, "train"),
        split("seen_new_cutouts", args.num_test, 3, trained, "heldout"),
        split("novel", args.num_test, 4, novel, "novel"),
    ]


def find_package(directory: Path, name: str) -> Path:
    """The checked file of a Debian package, which apt-get downloads if it is not there."""
    try:
        file = debian_packages.find_package(directory, name)
    except FileNotFoundError as error:
        sys.exit(str(error))
    version, expected = PACKAGES[name]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != expected:
        sys.exit(
            f"{file} is not the version that the lists of names and photographs were made for "
            f"(sha256 {digest}, expected {expected}): get {name} {version}"
        )
    return file


def extract(packages: list[Path], directory: Path) -> Path:
    """Unpack packages into one directory; returns it."""
    for package in packages:
        complete = directory / f"{package.stem}.complete"
        if not complete.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg", "-x", str(package), str(directory)], check=True)
            complete.touch()
    return directory


if __name__ == "__main__":
    main()
