#!/usr/bin/env python
"""Sample few-shot training splits from an annotation file in COCO's format.

python datasets/prepare_few_shot.py datasets/my/train.json --shots 1 3 5 10

Each class is in at least the given number of images, sampled by GLIP's rule and seeds. Writes
<file>_<shots>shot_<seed>.json beside the file; images are not copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glipv2_d2.data.coco_truth import read_truth
from glipv2_d2.engine.finetune.few_shot import SEEDS, SHOTS, few_shot_subset
from glipv2_d2.file_writing import atomic_open, dump_json


def main() -> None:
    args = parse_args()
    coco = read_truth(str(args.json)).to_coco()
    held_out = {image["id"] for image in coco["images"][: args.skip_first]}
    coco["images"] = [image for image in coco["images"] if image["id"] not in held_out]
    coco["annotations"] = [a for a in coco.get("annotations", ()) if a["image_id"] not in held_out]
    for shots in args.shots:
        for seed in args.seeds:
            subset = few_shot_subset(coco, shots=shots, seed=seed)
            path = args.json.with_name(f"{args.json.stem}_{shots}shot_{seed}.json")
            with atomic_open(path) as file:
                file.write(dump_json(subset).encode())
            print(f"{path}: {len(subset['images'])} images")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="the annotation file")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: %(default)s")
    parser.add_argument(
        "--skip-first",
        type=int,
        default=0,
        metavar="N",
        help="exclude the first N images, for example because they are the test set",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
