#!/usr/bin/env python
r"""How long each stage of a model takes, beside the least it could take on this machine.

    tools/benchmark.py --config-file configs/glip/glip_swin_t.yaml --num-classes 80 --threads 2
    tools/benchmark.py --config-file configs/glip/glip_swin_t.yaml --train --image-size 400 667
    tools/benchmark.py --compare before.json after.json

Weights are random unless MODEL.WEIGHTS is given, the picture is noise, the names are COCO's or,
from 81 on, LVIS's. The floor of a stage is the time of its matrix products and convolutions plus
that of their bytes, at rates that are measured around the repeats of the same run. On a CPU floor
and ratio count the seconds that all threads computed ("CPU ms"), so that other programs on the
machine spoil them little. Texts are kept across images as in use; --opts
MODEL.LANGUAGE_BACKBONE.CACHE_SIZE 0 reads them every time.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.checkpoint import GLIPv2Checkpointer, atomic_open
from glipv2_d2.engine.host_memory import keep_freed_memory, peak_resident_bytes
from glipv2_d2.engine.param_groups import build_optimizer
from glipv2_d2.engine.precision import PRECISIONS, inference_precision, round_weights
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.stages import (
    Amounts,
    CudaClock,
    HostClock,
    ProductCounter,
    StageRecorder,
    floor_seconds,
    machine_tasks,
)
from glipv2_d2.modeling import GLIPv2, meta_arch, results
from glipv2_d2.modeling.fusion.bi_attention import BiAttention
from glipv2_d2.structures import fields

DTYPES = {"fp32": torch.float32, **PRECISIONS}
BOXES_PER_IMAGE = 8
# The part of a run that no stage claims.
OTHER = "other"
# Enough work for a GPU's clock to see, and to outlast a CPU's first, faster tenth of a second.
TASK_CALLS = {"cpu": 8, "cuda": 20}


@dataclass
class Report:
    """What a benchmark measured; also the layout of the JSON file.

    Attributes:
        settings: what was run, where.
        stages: for each stage the median and the spread (median absolute deviation) of the seconds
            of one run or step, the amounts of its products, its floor and the ratio to it.
        total: the same of the whole run.
        rates: of the machine, per second (on a CPU: per second and thread): FLOPs of a large
            product, of a convolution, copied bytes.
        peak_bytes: the most memory that the process (CPU) or the allocator (CUDA) has had.
    """

    settings: dict[str, Any]
    stages: dict[str, Amounts] = field(default_factory=dict)
    total: Amounts = field(default_factory=dict)
    rates: Amounts = field(default_factory=dict)
    peak_bytes: int = 0


class TextbookBiAttention(nn.Module):
    """Bi-directional attention as it is usually written: project every position, then attend.

    It computes what :class:`BiAttention` computes, from the same weights, and is kept to tell what
    the absorbed form of that class saves.
    """

    def __init__(self, absorbed: BiAttention) -> None:
        super().__init__()
        self.absorbed = absorbed

    def forward(
        self, visual: Tensor, language: Tensor, mask: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = self.absorbed
        query = self._heads(weights.visual_query(visual) * weights.head_dim**-0.5)
        scores = query @ self._heads(weights.language_key(language)).transpose(-1, -2)
        to_text = self._drop(scores.transpose(-1, -2).softmax(dim=-1))
        hidden = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        to_image = self._drop(hidden.softmax(dim=-1))
        read_words = to_image @ self._heads(weights.language_value(language))
        read_positions = to_text @ self._heads(weights.visual_value(visual))
        update = weights.visual_out(read_words.transpose(1, 2).flatten(2))
        return (
            torch.addcmul(visual, scale, update),
            weights.language_out(read_positions.transpose(1, 2).flatten(2)),
        )

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, H d) -> (N, H, L, d)."""
        return x.unflatten(-1, (self.absorbed.num_heads, -1)).transpose(1, 2)

    def _drop(self, attention: Tensor) -> Tensor:
        return F.dropout(attention, self.absorbed.dropout, self.training)


def use_textbook_fusion(model: GLIPv2) -> None:
    for block in model.fused_head.blocks:
        # Not a subclass of it, which computes something more.
        attention = getattr(getattr(block, "fusion", None), "attention", None)
        if type(attention) is not BiAttention:
            found = "no attention" if attention is None else type(attention).__name__
            raise ValueError(
                "--textbook-fusion needs a head with BiAttention, not "
                f"{type(model.fused_head).__name__} with {found}"
            )
        block.fusion.attention = TextbookBiAttention(attention)


def class_names(count: int) -> list[str]:
    """The first names of COCO's things, or where they do not suffice of LVIS's."""
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    lvis = [category["name"].replace("_", " ") for category in LVIS_CATEGORIES]
    names = coco if count <= len(coco) else lvis
    if not 1 <= count <= len(names):
        raise ValueError(f"--num-classes is {count}; 1 to {len(names)} names are known")
    return names[:count]


def make_inputs(
    batch_size: int, image_size: tuple[int, int], names: list[str], *, with_masks: bool
) -> list[dict[str, Any]]:
    """Pictures of noise with a few boxes of the first names, and masks that fill these."""
    generator = torch.Generator().manual_seed(0)
    height, width = image_size
    inputs = []
    for _ in range(batch_size):
        corners = torch.rand(BOXES_PER_IMAGE, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width - 8, height - 8])).flatten(1)
        boxes[:, 2:] += 8
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(BOXES_PER_IMAGE) % len(names)
        if with_masks:
            instances.gt_masks = BitMasks(_filled(boxes, image_size))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({fields.IMAGE: image, fields.CLASSES: names, fields.INSTANCES: instances})
    return inputs


def _filled(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(R, 4) boxes -> (R, H, W) bool, what lies in each."""
    y, x = (torch.arange(size) for size in image_size)
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    in_rows, in_columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return in_rows[:, :, None] & in_columns[:, None]


def watch_stages(recorder: StageRecorder, model: GLIPv2) -> None:
    """Hooks on every part of the model; of the parts that a config leaves out there are none."""
    recorder.watch("preprocess", model, "preprocess_image")
    recorder.watch("text", model, "tokenizer")
    recorder.watch("text", model, "language_cache")
    recorder.watch("FPN", model.backbone)
    recorder.watch("backbone", model.backbone.bottom_up)
    for block in getattr(model.fused_head, "blocks", ()):
        for stage, part in (
            ("fusion", "fusion"),
            ("language layers", "language_layer"),
            ("DyConv", "dynamic_conv"),
        ):
            if hasattr(block, part):
                recorder.watch(stage, getattr(block, part))
    recorder.watch("post-processing, losses", model.proposal_generator)
    recorder.watch("heads", model.proposal_generator, "predict")
    recorder.watch("post-processing, losses", meta_arch, "image_results")
    if model.roi_heads is not None:
        recorder.watch("masks", model.roi_heads)
        recorder.watch("masks", results, "paste_masks")


def watch_compiled(recorder: StageRecorder, model: GLIPv2) -> None:
    """Hooks around what is compiled: code inside must not be interrupted."""
    recorder.watch("preprocess", model, "preprocess_image")
    recorder.watch("text", model, "language_cache")
    recorder.watch("backbone, FPN", model.backbone)
    recorder.watch("fused head", model.fused_head)
    recorder.watch("heads, post-processing, losses", model.proposal_generator)


def compile_parts(model: GLIPv2) -> None:
    for part in (model.backbone, model.fused_head):
        part.forward = torch.compile(part.forward)


def make_run(
    model: GLIPv2,
    inputs: list[dict[str, Any]],
    autocast: Callable[[], AbstractContextManager[Any]],
    optimizer: torch.optim.Optimizer | None,
) -> Callable[[StageRecorder], None]:
    """One inference, or with an optimizer one step of training."""

    def infer(recorder: StageRecorder) -> None:  # noqa: ARG001 - the call of both
        with torch.no_grad(), autocast():
            model(inputs)

    def step(recorder: StageRecorder) -> None:
        assert optimizer is not None
        with autocast():
            loss = sum(model(inputs).values())
        # What checkpointing computes again is part of it.
        with recorder.span("backward", whole=True):
            loss.backward()
        with recorder.span("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return infer if optimizer is None else step


class Benchmark:
    """A model, its inputs, and the machine that runs both."""

    def __init__(self, args: argparse.Namespace, cfg: CfgNode) -> None:
        self.args = args
        self.device = torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(0)
        self.model = build_model(cfg).train(args.train)
        if cfg.MODEL.WEIGHTS:
            GLIPv2Checkpointer(self.model).load(cfg.MODEL.WEIGHTS)
        if args.textbook_fusion:
            use_textbook_fusion(self.model)
        if not isinstance(self.model, GLIPv2):
            raise ValueError(
                f"{args.config_file} builds a {type(self.model).__name__}; only the stages of a "
                "GLIPv2 are known: choose a config with MODEL.META_ARCHITECTURE GLIPv2"
            )
        inputs = make_inputs(
            args.batch_size,
            tuple(args.image_size),
            class_names(args.num_classes),
            with_masks=cfg.MODEL.MASK_ON,
        )
        optimizer = build_optimizer(cfg, self.model) if args.train else None
        if not args.train:
            round_weights(self.model, cfg)
        precision = functools.partial(inference_precision, cfg)
        self.run = make_run(self.model, inputs, precision, optimizer)

    def measure(self) -> Report:
        args = self.args
        report = Report(settings=describe_settings(args, self.device))
        amounts = self._count_products()
        if args.compile:
            compile_parts(self.model)
        for _ in range(args.warmup):
            self.run(StageRecorder(HostClock()))
        # Before the machine's rates are measured, which takes memory, too.
        report.peak_bytes = self._peak_bytes()
        runs, rates = self._repeat()
        report.rates = median_of(rates)
        for stage in dict.fromkeys(stage for run in runs for stage in run):
            report.stages[stage] = summarize(
                [run.get(stage, dict.fromkeys(runs[0][OTHER], 0.0)) for run in runs],
                amounts.get(stage),
                report.rates,
            )
        totals = [sum_of(run.values()) for run in runs]
        report.total = summarize(totals, sum_of(amounts.values()), report.rates)
        return report

    def _count_products(self) -> dict[str, Amounts]:
        with ProductCounter() as counter, self._watching(counter) as recorder:
            with recorder.span(OTHER):
                self.run(recorder)
            return recorder.take()

    def _repeat(self) -> tuple[list[dict[str, Amounts]], list[Amounts]]:
        """The stages of every repeat, and the machine's rates before, between and after them."""
        is_cuda = self.device.type == "cuda"
        tasks = machine_tasks(self.device, DTYPES[self.args.precision])
        runs = []
        with self._watching(CudaClock() if is_cuda else HostClock()) as recorder:
            rates = [self._rates(recorder, tasks)]
            for _ in range(self.args.repeats):
                with recorder.span(OTHER):
                    self.run(recorder)
                runs.append(recorder.take())
                rates.append(self._rates(recorder, tasks))
        return runs, rates

    def _rates(self, recorder: StageRecorder, tasks: dict[str, Callable[[], float]]) -> Amounts:
        done = {}
        for name, task in tasks.items():
            task()
            with recorder.span(name):
                done[name] = sum(task() for _ in range(TASK_CALLS[self.device.type]))
        spent = recorder.take()
        return {name: done[name] / busy_seconds(spent[name]) for name in done}

    @contextmanager
    def _watching(self, meter: Any) -> Iterator[StageRecorder]:
        with StageRecorder(meter) as recorder:
            (watch_compiled if self.args.compile else watch_stages)(recorder, self.model)
            yield recorder

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


def busy_seconds(amounts: Amounts) -> float:
    """Seconds of all threads together where they are known, else those on the clock."""
    return amounts.get("cpu_s", amounts["wall_s"])


def sum_of(parts: Any) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def median_of(samples: Sequence[Amounts]) -> Amounts:
    return {name: statistics.median(x[name] for x in samples) for name in samples[0]}


def summarize(samples: Sequence[Amounts], amounts: Amounts | None, rates: Amounts) -> Amounts:
    """Median and spread of the seconds, with the products and the floor they set."""
    summary = median_of(samples)
    wall_s = summary["wall_s"]
    summary["spread_s"] = statistics.median(abs(x["wall_s"] - wall_s) for x in samples)
    if amounts is not None:
        floor_s = floor_seconds(amounts, rates)
        summary |= {**amounts, "floor_s": floor_s}
        # A stage that computes nearly nothing has no floor worth a comparison.
        if floor_s > 0.01 * busy_seconds(summary):
            summary["ratio"] = busy_seconds(summary) / floor_s
    return summary


def describe_settings(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "config_file": args.config_file,
        "opts": args.opts,
        "mode": "train" if args.train else "infer",
        "image_size": list(args.image_size),
        "num_classes": args.num_classes,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "compile": args.compile,
        "textbook_fusion": args.textbook_fusion,
        "keep_freed_memory": args.keep_freed_memory,
        "threads": torch.get_num_threads(),
        "warmup": args.warmup,
        "repeats": args.repeats,
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "torch": torch.__version__,
    }


def print_report(report: Report, console: Console) -> None:
    settings = report.settings
    height, width = settings["image_size"]
    console.print(
        f"{settings['config_file']}: {settings['mode']}, {settings['batch_size']} x {height} x "
        f"{width}, {settings['num_classes']} names, {settings['precision']}, "
        f"{settings['threads']} threads on {settings['device']}",
        soft_wrap=True,
    )
    numbers = ("ms", "+-", "CPU ms", "GFLOP", "MB", "floor ms", "ratio")
    table = Table("stage", *(Column(name, justify="right") for name in numbers))
    by_time = sorted(report.stages.items(), key=lambda item: -item[1]["wall_s"])
    for name, stage in [*by_time, ("total", report.total)]:
        flops = stage.get("product_flops", 0.0) + stage.get("convolution_flops", 0.0)
        table.add_row(
            name,
            f"{stage['wall_s'] * 1e3:.0f}",
            f"{stage['spread_s'] * 1e3:.0f}",
            f"{stage['cpu_s'] * 1e3:.0f}" if "cpu_s" in stage else "",
            f"{flops / 1e9:.1f}",
            f"{stage.get('bytes', 0.0) / 1e6:.0f}",
            f"{stage.get('floor_s', 0.0) * 1e3:.0f}",
            f"{stage['ratio']:.2f}" if "ratio" in stage else "",
        )
    console.print(table)
    rates, per = report.rates, "(s thread)" if "cpu_s" in report.total else "s"
    console.print(
        f"machine: product {rates['product'] / 1e9:.0f} GFLOP/{per}, convolution "
        f"{rates['convolution'] / 1e9:.0f} GFLOP/{per}, copy {rates['copy'] / 1e9:.1f} GB/{per}; "
        f"{settings['batch_size'] / report.total['wall_s']:.3g} images/s; peak memory "
        f"{report.peak_bytes / 1e9:.2f} GB",
        soft_wrap=True,
    )


def print_comparison(before: Report, after: Report, console: Console) -> None:
    """Two reports side by side. Seconds of two runs compare only as far as the rates do."""
    for name, old in before.settings.items():
        if old != after.settings.get(name):
            console.print(f"{name}: {old} -> {after.settings.get(name)}", soft_wrap=True)
    numbers = ("ms before", "after", "after/before", "ratio before", "after")
    table = Table("stage", *(Column(name, justify="right") for name in numbers))
    for name in [*dict.fromkeys([*before.stages, *after.stages]), "total"]:
        old, new = (
            report.total if name == "total" else report.stages.get(name, {})
            for report in (before, after)
        )
        cells = [f"{x['wall_s'] * 1e3:.0f}" if x else "" for x in (old, new)]
        cells.append(f"{new['wall_s'] / old['wall_s']:.2f}" if old.get("wall_s") and new else "")
        cells += [f"{x['ratio']:.2f}" if "ratio" in x else "" for x in (old, new)]
        table.add_row(name, *cells)
    console.print(table)
    for name, rate in before.rates.items():
        console.print(f"machine, {name}: after/before {after.rates[name] / rate:.2f}")
    console.print(
        f"peak memory: {before.peak_bytes / 1e9:.2f} -> {after.peak_bytes / 1e9:.2f} GB",
        soft_wrap=True,
    )


def read_report(path: Path) -> Report:
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is no result of --json: {error}") from error


def write_report(report: Report, path: Path) -> None:
    with atomic_open(path) as file:
        file.write(json.dumps(asdict(report), indent=1).encode("utf-8"))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="the model's config")
    what.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="show two results of --json side by side and measure nothing",
    )
    add = parser.add_argument
    add("--image-size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    add("--num-classes", type=int, default=80, metavar="N", help="names to ask (default: 80)")
    add("--batch-size", type=int, default=1, metavar="N")
    add("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    add("--precision", choices=DTYPES, default="fp32", help="autocast's, or fp32 without it")
    add("--device", help="cpu, cuda, ... (default: the config's)")
    add("--compile", action="store_true", help="torch.compile backbone and fused head")
    add("--train", action="store_true", help="steps of training instead of inference")
    add("--checkpointing", action=argparse.BooleanOptionalAction, help="(default: the config's)")
    add("--textbook-fusion", action="store_true", help="project all positions, for comparison")
    add(
        "--keep-freed-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as the other tools do on a CPU, see docs/performance.md (default: yes)",
    )
    add(
        "--warmup",
        type=int,
        default=2,
        metavar="N",
        help="runs before the measured ones, after one that is counted",
    )
    add("--repeats", type=int, default=5, metavar="N", help="measured runs")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="come last")
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    opts = [*args.opts, "TEST.PRECISION", args.precision]
    if args.device is not None:
        opts += ["MODEL.DEVICE", args.device]
    if args.checkpointing is not None:
        opts += ["MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING", args.checkpointing]
    return load_config(args.config_file, opts)


def check(args: argparse.Namespace) -> None:
    for name, least in {"batch_size": 1, "warmup": 0, "repeats": 1, "threads": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if min(args.image_size) < 32:
        raise ValueError(f"--image-size is {tuple(args.image_size)}; each side must be at least 32")


def run(args: argparse.Namespace, console: Console) -> None:
    if args.compare is not None:
        print_comparison(*map(read_report, args.compare), console)
        return
    check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    cfg = config_of(args)
    if args.keep_freed_memory and cfg.MODEL.DEVICE == "cpu":
        args.keep_freed_memory = keep_freed_memory()
    report = Benchmark(args, cfg).measure()
    print_report(report, console)
    if args.json is not None:
        write_report(report, args.json)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        run(args, Console())
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
