#!/usr/bin/env python
"""Memory and start of the training loader on generated captions, with and without a record store.

    python tools/benchmark_records.py --num 10000000 --folder /tmp/records
    python tools/benchmark_records.py --num 1000000 --copies 10 --folder /tmp/records   # quicker

Writes captions with two boxes each (JSON lines), builds their store, and starts the loader with
two workers and no model. 10 million records need 6 GB in the folder, which is deleted. Memory is
private (USS), without the mapped files of the store.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from detectron2.config import CfgNode
from PIL import Image
from tabulate import tabulate

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.record_store import (
    HEADER_FILE,
    INDEX_ENTRY,
    INDEX_FILE,
    RECORDS_FILE,
    RecordStore,
)
from glipv2_d2.data.stored_datasets import FOLDER, open_stores
from glipv2_d2.engine.setup import load_config

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# (width, height) of the two images: half of the records are of wide ones.
SIZES = ((48, 64), (64, 48))
WORDS = ("red", "old", "small", "wooden", "open", "dog", "table", "street", "window", "bicycle")
NUMBER = "NUMBER"
CHUNK = 100_000
NUM_BATCHES = 20
BYTES_PER_MB = 1e6


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--num", type=int, default=10_000_000, help="records of which the store is built")
    add("--copies", type=int, default=1, help="repeat the records of the built store")
    add("--plain-num", type=int, default=100_000, help="records without a store")
    add("--folder", type=Path, required=True, help="for the files; must be new")
    add("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    add("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def write_captions(path: Path, num_records: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, num_records, CHUNK):
            numbers = range(begin, min(begin + CHUNK, num_records))
            words = rng.integers(len(WORDS), size=(len(numbers), 4)).tolist()
            for number, chosen in zip(numbers, words, strict=True):
                file.write(_line(*chosen, number % 2).replace(NUMBER, str(number)))


@functools.cache
def _line(a: int, b: int, c: int, d: int, image: int) -> str:
    """A line of JSON whose caption has the word ``NUMBER``."""
    first, second = f"a {WORDS[a]} {WORDS[b]}", f"the {WORDS[c]} {WORDS[d]}"
    begin = len(f"{first} next to ")
    line = {
        "image": f"{image}.jpg",
        "caption": f"{first} next to {second} in picture {NUMBER}",
        "boxes": [[2, 3, 30, 40], [20, 5, 45, 44]],
        "spans": [[[0, len(first)]], [[begin, begin + len(second)]]],
        "scores": [0.9, 0.7],
        "width": SIZES[image][0],
        "height": SIZES[image][1],
    }
    return json.dumps(line, separators=(",", ":")) + "\n"


def make_config(args: argparse.Namespace, name: str) -> CfgNode:
    cfg = load_config("", ["SEED", 1, "DATALOADER.NUM_WORKERS", 2, *args.opts]).clone()
    cfg.defrost()
    cfg.DATALOADER.RECORD_STORE = name == "stored"
    files = {"json": str(args.folder / f"{name}.jsonl"), "images": str(args.folder)}
    cfg.DATASETS.CUSTOM = [{"name": name, "format": "captions", **files}]
    cfg.DATASETS.TRAIN = (name,)
    return cfg


def private_memory(process: psutil.Process) -> float:
    """USS without the mapped pages of stores, which count if only one process has read them."""
    mapped = [m for m in process.memory_maps(grouped=True) if FOLDER in m.path]
    private = process.memory_full_info().uss - sum(m.private_clean for m in mapped)
    return private / BYTES_PER_MB


def start_loader(args: argparse.Namespace, *, name: str) -> dict[str, Any]:
    cfg = make_config(args, name)
    this = psutil.Process()
    before = private_memory(this)
    start = time.monotonic()
    loader = build_train_loader(cfg)
    # Workers share the pages of this process, which are not private after the fork.
    with_loader = private_memory(this)
    batches = iter(loader)
    next(batches)
    seconds = time.monotonic() - start
    for _ in range(NUM_BATCHES):
        next(batches)
    return {
        "records": len(loader.dataset),
        "first batch, s": seconds,
        "main process before, MB": before,
        "main process with the loader, MB": with_loader,
        "workers, MB": " ".join(f"{private_memory(worker):.0f}" for worker in this.children()),
    }


def build(args: argparse.Namespace) -> dict[str, Any]:
    cfg = make_config(args, "stored")
    this = psutil.Process()
    before = private_memory(this)
    start, processor_start = time.monotonic(), time.process_time()
    register_custom(cfg.DATASETS.CUSTOM)
    [store] = open_stores(cfg).values()
    row = {
        "records built": len(store),
        "build, s": time.monotonic() - start,
        "processor time, s": time.process_time() - processor_start,
        "main process before, MB": before,
        "main process after, MB": private_memory(this),
    }
    repeat(store, args.copies)
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    return {**row, "size of the store, MB": size / BYTES_PER_MB}


def repeat(store: RecordStore, copies: int) -> None:
    """Write the records of a store several times over, in place of generating more of them."""
    folder = store.folder
    header = json.loads((folder / HEADER_FILE).read_bytes())
    entries = np.fromfile(folder / INDEX_FILE, INDEX_ENTRY)
    records = (folder / RECORDS_FILE).read_bytes()
    with (folder / INDEX_FILE).open("ab") as index, (folder / RECORDS_FILE).open("ab") as data:
        for _ in range(copies - 1):
            entries["end"] += len(records)
            index.write(entries.tobytes())
            data.write(records)
    header["num_records"] *= copies
    header["num_bytes"] *= copies
    header["index_checksum"] = zlib.crc32(np.memmap(folder / INDEX_FILE, np.uint8, mode="r"))
    (folder / HEADER_FILE).write_text(json.dumps(header))


MEASUREMENTS = {
    "plain": functools.partial(start_loader, name="plain"),
    "build": build,
    "stored": functools.partial(start_loader, name="stored"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.measure is not None:
        print(json.dumps(MEASUREMENTS[args.measure](args)))
        return 0
    args.folder.mkdir(parents=True)
    try:
        for i, size in enumerate(SIZES):
            Image.new("RGB", size, "gray").save(args.folder / f"{i}.jpg")
        write_captions(args.folder / "plain.jsonl", args.plain_num)
        write_captions(args.folder / "stored.jsonl", args.num)
        for name in MEASUREMENTS:
            # A new process has no memory of the work before it.
            command = [sys.executable, __file__, "--measure", name, *argv]
            run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            row = {"measured": name, **json.loads(run.stdout.splitlines()[-1])}
            print(tabulate(row.items(), floatfmt=".1f"), flush=True)
    finally:
        shutil.rmtree(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
