#!/usr/bin/env python
r"""How long a model of this project takes beside transformers' Grounding DINO tiny.

    tools/compare_grounding_dino.py --config-file configs/glip/glip_swin_t.yaml --threads 2

Both have random weights, look at the same noise for the same names, and take turns in one run, so
that what else the machine does disturbs both alike. Where a prompt of Grounding DINO's 256 tokens
does not hold all names, all of it is asked several times, as its interface has it. Its time ends
with boxes and scores of tokens; ours includes the detections. Our texts are kept across images, as
in use; with --opts MODEL.LANGUAGE_BACKBONE.CACHE_SIZE 0 they are read every time, as its are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from benchmark import DTYPES, class_names, make_inputs
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from glipv2_d2.checkpoint import atomic_open
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.setup import load_config
from glipv2_d2.text.tokenizer import Tokenizer

OURS, THEIRS = "this project", "Grounding DINO tiny"
MAX_TOKENS = 256


def prompts_of(names: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """As few prompts "a cat. a dog." as hold all names."""
    prompts = [""]
    for name in names:
        longer = f"{prompts[-1]} {name}.".strip()
        # Its first and last token are no words.
        if prompts[-1] and tokenizer.count(longer) + 2 > MAX_TOKENS:
            prompts.append(f"{name}.")
        else:
            prompts[-1] = longer
    return prompts


def token_ids(prompt: str, tokenizer: Tokenizer) -> torch.Tensor:
    """(1, T), with the special tokens at both ends."""
    (pieces,) = tokenizer.pieces([prompt])
    return torch.tensor([[tokenizer.begin_id, *pieces, tokenizer.end_id]])


def make_theirs(
    inputs: list[dict], names: Sequence[str], device: torch.device
) -> tuple[Callable[[], None], int]:
    """A call that asks Grounding DINO for all names, and the number of its prompts."""
    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().to(device)
    tokenizer = Tokenizer(max_tokens=MAX_TOKENS)
    prompts = [token_ids(prompt, tokenizer) for prompt in prompts_of(names, tokenizer)]

    def run() -> None:
        pixels = torch.stack([x["image"] for x in inputs]).to(device).float().sub(128).div(64)
        for ids in prompts:
            model(pixel_values=pixels, input_ids=ids.expand(len(inputs), -1).to(device))

    return run, len(prompts)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict:
    """What each of both took; also the layout of the JSON file."""
    opts = [*args.opts, *(["MODEL.DEVICE", args.device] if args.device else [])]
    cfg = load_config(args.config_file, opts)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    names = class_names(args.num_classes)
    inputs = make_inputs(args.batch_size, tuple(args.image_size), names, with_masks=False)
    ours = build_model(cfg).eval()
    theirs, num_prompts = make_theirs(inputs, names, device)
    runs = {OURS: lambda: ours(inputs), THEIRS: theirs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad(), autocast(device, args.precision):
        for turn in tqdm(range(args.warmup + args.repeats), unit="turn"):
            for name, run in runs.items():
                took = seconds_of(run, device)
                if turn >= args.warmup:
                    seconds[name].append(took)
    return {
        "settings": {
            name: value for name, value in vars(args).items() if name not in ("json", "device")
        }
        | {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "prompts_of_grounding_dino": num_prompts,
        "seconds": seconds,
    }


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def print_result(result: dict, console: Console) -> None:
    settings, seconds = result["settings"], result["seconds"]
    table = Table("", *(Column(name, justify="right") for name in ("s", "+-", "images/s")))
    for name, samples in seconds.items():
        median = statistics.median(samples)
        spread = statistics.median(abs(x - median) for x in samples)
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
    add("--config-file", required=True, metavar="FILE", help="of this project's model")
    add("--image-size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    add("--num-classes", type=int, default=80, metavar="N", help="names to ask (default: 80)")
    add("--batch-size", type=int, default=1, metavar="N")
    add("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    add("--precision", choices=DTYPES, default="fp32", help="autocast's, or fp32 without it")
    add("--device", help="cpu, cuda, ... (default: the config's)")
    add("--warmup", type=int, default=1, metavar="N", help="turns before the measured ones")
    add("--repeats", type=int, default=3, metavar="N", help="measured turns")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="come last")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        for name, least in {"batch_size": 1, "warmup": 0, "repeats": 1}.items():
            if getattr(args, name) < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least "
                    f"{least}"
                )
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        result = measure(args)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_result(result, Console())
    if args.json is not None:
        with atomic_open(args.json) as file:
            file.write(json.dumps(result, indent=1).encode())
        print(f"result in {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
