#!/usr/bin/env python
r"""Inference time of a model of this project and of transformers' Grounding DINO tiny.

    tools/compare_grounding_dino.py --config-file configs/glip/glip_swin_t.yaml --threads 2

Both models have random weights, process the same noise images and class names, and take turns in
one run, so that other load on the machine affects both. If the class names exceed a prompt of
Grounding DINO (256 tokens), the whole model runs once per prompt, as its interface requires. Its
time covers boxes and token scores, ours includes post-processing. Our text features are cached
across images, as in use; --opts MODEL.LANGUAGE_BACKBONE.CACHE_SIZE 0 encodes the text every time,
as Grounding DINO does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from glipv2_d2.command_line import check_minimums
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.precision import PRECISIONS
from glipv2_d2.engine.setup import load_config
from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.profiling.grounding_dino import GroundingDino, median_and_spread, time_in_turns
from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs

OURS, THEIRS = "this project", "Grounding DINO tiny"
DTYPES = {"fp32": torch.float32, **PRECISIONS}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Settings and seconds of both models; also the layout of the JSON file."""
    opts = [*args.opts, *(["MODEL.DEVICE", args.device] if args.device else [])]
    cfg = load_config(args.config_file, opts)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    class_names = benchmark_class_names(args.num_classes)
    image_size = tuple(args.image_size)
    inputs = random_inputs(args.batch_size, image_size, class_names, with_masks=False)
    ours = build_model(cfg).eval()
    theirs = GroundingDino(class_names, device)
    runs = {OURS: lambda: ours(inputs), THEIRS: lambda: theirs(inputs)}
    with torch.no_grad(), autocast(device, args.precision):
        turns = tqdm(range(args.warmup + args.repeats), unit="turn")
        seconds = time_in_turns(runs, device, turns, warmup=args.warmup)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "device")}
    return {
        "settings": {
            **settings,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "prompts_of_grounding_dino": len(theirs.prompts),
        "seconds": seconds,
    }


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def print_result(result: dict[str, Any], console: Console) -> None:
    settings, seconds = result["settings"], result["seconds"]
    table = Table("", *(Column(name, justify="right") for name in ("s", "+-", "images/s")))
    for name, samples in seconds.items():
        median, spread = median_and_spread(samples)
        rate = settings["batch_size"] / median
        table.add_row(name, f"{median:.2f}", f"{spread:.2f}", f"{rate:.3g}")
    console.print(table)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    prompts = f"{result['prompts_of_grounding_dino']} prompt(s) of Grounding DINO"
    console.print(
        f"{OURS} is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to "
        f"{max(ratios):.2f} in {len(ratios)} turns); {settings['num_classes']} names, "
        f"{prompts}, {settings['precision']}",
        soft_wrap=True,
    )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="config of this project's model")
    add("--image-size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    add("--num-classes", type=int, default=80, metavar="N", help="class names (default: 80)")
    add("--batch-size", type=int, default=1, metavar="N")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--precision", choices=DTYPES, default="fp32", help="of autocast; fp32: no autocast")
    add("--device", help="cpu, cuda, ... (default: the config's)")
    add("--warmup", type=int, default=1, metavar="N", help="turns before the measured ones")
    add("--repeats", type=int, default=3, metavar="N", help="measured turns")
    add("--json", type=Path, metavar="FILE", help="write the result to this file")
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides, last on the command line",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        check_minimums(args, {"batch_size": 1, "warmup": 0, "repeats": 1})
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        result = measure(args)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_result(result, Console())
    if args.json is not None:
        with atomic_open(args.json) as file:
            file.write(dump_json(result, indent=1).encode())
        print(f"result in {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
