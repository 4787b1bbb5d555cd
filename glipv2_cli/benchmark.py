"""Time of each stage of a model, and the lower bound for it on this machine.

Examples:
  glipv2 benchmark --model glip-t --num-classes 80 --threads 2 --json before.json
  glipv2 benchmark --config my.yaml --train --image-size 400 667
  glipv2 benchmark --compare before.json after.json

The weights are random unless --weights or MODEL.WEIGHTS is set, images are noise, and the class
names are COCO's, or LVIS's for more than 80. The lower bound of a stage is the time of its matrix
products and convolutions plus that of their memory traffic, at rates measured between the repeats
of the same run. On a CPU, lower bound and ratio refer to the CPU time of all threads ("CPU ms"),
which other processes on the machine hardly affect. Text features are cached across images, as in
use; --opts MODEL.LANGUAGE_BACKBONE.CACHE_SIZE 0 encodes the text every time.

exit codes:
  0  done
  2  the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import functools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from rich.console import Console

from glipv2_cli.arguments import (
    add_log_argument,
    add_model_arguments,
    config_overrides,
    is_repository,
    log_to_file,
    model_files,
    model_name,
)
from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.command_line import check_minimums
from glipv2_d2.config import named_config_file
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.precision import PRECISIONS, inference_precision, round_weights
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.fusion.bi_attention import BiAttention, bi_attention, text_attention
from glipv2_d2.profiling.benchmark import StageBenchmark
from glipv2_d2.profiling.report import (
    BenchmarkReport,
    print_comparison,
    print_operators,
    print_report,
)
from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs

DTYPES = {"fp32": torch.float32, **PRECISIONS}
MIN_IMAGE_SIDE = 32


def use_textbook_fusion(model: GLIPv2) -> None:
    """Replace the memory-efficient attention kernel of every block by the textbook form.

    Raises:
        ValueError: the fused head has other modules than BiAttention.
    """
    attentions = [x for x in model.fused_head.modules() if isinstance(x, BiAttention)]
    # Subclasses compute something else.
    others = {type(x).__name__ for x in attentions if type(x) is not BiAttention}
    if others or not attentions:
        raise ValueError(
            "--textbook-fusion needs a head with BiAttention, not "
            f"{type(model.fused_head).__name__} with {', '.join(sorted(others)) or 'none'}"
        )
    for attention in attentions:
        attention.function, attention.text_function = bi_attention, text_attention


def build_benchmark(args: argparse.Namespace, cfg: CfgNode) -> StageBenchmark:
    torch.manual_seed(0)
    model = build_model(cfg).train(args.train)
    if not isinstance(model, GLIPv2):
        raise ValueError(
            f"{model_name(args)} builds a {type(model).__name__}; only the stages of GLIPv2 can be "
            "measured: choose a config with MODEL.META_ARCHITECTURE GLIPv2"
        )
    if cfg.MODEL.WEIGHTS:
        GLIPv2Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    if args.textbook_fusion:
        use_textbook_fusion(model)
    inputs = random_inputs(
        args.batch_size,
        tuple(args.image_size),
        benchmark_class_names(args.num_classes),
        with_masks=cfg.MODEL.MASK_ON,
    )
    optimizer = build_optimizer(cfg, model) if args.train else None
    if not args.train:
        round_weights(model, cfg)
    return StageBenchmark(
        model,
        inputs,
        device=torch.device(cfg.MODEL.DEVICE),
        dtype=DTYPES[cfg.TEST.PRECISION],
        autocast=functools.partial(inference_precision, cfg),
        optimizer=optimizer,
        compiled=args.compile,
    )


def describe_settings(
    args: argparse.Namespace, cfg: CfgNode, device: torch.device
) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "config_file": model_name(args),
        "opts": args.opts,
        "mode": "train" if args.train else "infer",
        "image_size": list(args.image_size),
        "num_classes": args.num_classes,
        "batch_size": args.batch_size,
        "precision": cfg.TEST.PRECISION,
        "compile": args.compile,
        "textbook_fusion": args.textbook_fusion,
        "keep_freed_memory": args.keep_freed_memory,
        "threads": torch.get_num_threads(),
        "warmup": args.warmup,
        "repeats": args.repeats,
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "torch": torch.__version__,
    }


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="print two results of --json side by side; nothing is measured",
    )
    add("--image-size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"))
    add("--num-classes", type=int, default=80, metavar="N", help="class names (default: 80)")
    add("--batch-size", type=int, default=1, metavar="N")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--compile", action="store_true", help="torch.compile backbone and fused head")
    add("--train", action="store_true", help="training steps instead of inference")
    add("--checkpointing", action=argparse.BooleanOptionalAction, help="(default: the config's)")
    add("--textbook-fusion", action="store_true", help="project all positions, for comparison")
    add(
        "--keep-freed-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a CPU, as in the other tools, see docs/performance.md (default: yes)",
    )
    add(
        "--warmup",
        type=int,
        default=2,
        metavar="N",
        help="runs before the measured ones, after the one that counts FLOPs",
    )
    add("--repeats", type=int, default=5, metavar="N", help="measured runs")
    add("--operators", type=int, metavar="N", help="profile one more run: the N slowest operators")
    add("--json", type=Path, metavar="FILE", help="write the report to this file")
    add_log_argument(parser, "benchmark")
    add_model_arguments(parser)
    return parser


def build_config(args: argparse.Namespace) -> CfgNode:
    # The weights of a named model do not change the times, and may be large.
    is_named = args.config is None and not is_repository(args.model)
    config, weights = (
        (str(named_config_file(args.model)), args.weights) if is_named else model_files(args)
    )
    opts: list[Any] = config_overrides(args)
    if weights:
        opts += ["MODEL.WEIGHTS", weights]
    if args.checkpointing is not None:
        opts += ["MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING", args.checkpointing]
    return load_config(config, opts)


def run(args: argparse.Namespace, console: Console) -> None:
    if args.compare is not None:
        before, after = args.compare
        print_comparison(BenchmarkReport.read(before), BenchmarkReport.read(after), console)
        return
    minimums = {"batch_size": 1, "warmup": 0, "repeats": 1, "threads": 1, "operators": 1}
    check_minimums(args, minimums)
    if min(args.image_size) < MIN_IMAGE_SIDE:
        raise ValueError(
            f"--image-size is {tuple(args.image_size)}; each side must be at least {MIN_IMAGE_SIDE}"
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    cfg = build_config(args)
    if args.keep_freed_memory and cfg.MODEL.DEVICE == "cpu":
        args.keep_freed_memory = keep_freed_memory()
    benchmark = build_benchmark(args, cfg)
    settings = describe_settings(args, cfg, benchmark.device)
    report = benchmark.measure(warmup=args.warmup, repeats=args.repeats, settings=settings)
    print_report(report, console)
    if args.operators is not None:
        report.operators = benchmark.measure_operators()
        print_operators(report, console, args.operators)
    if args.json is not None:
        report.write(args.json)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    with log_to_file(args.log, option="--log"):
        run(args, Console())
    return 0
