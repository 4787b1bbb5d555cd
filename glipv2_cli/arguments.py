"""Arguments that subcommands share, and the model that they select."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glipv2_d2 import Predictor

DEFAULT_MODEL = "glipv2-mini"
PRECISIONS = ("fp32", "bf16", "fp16")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help="glipv2-mini, glip-t, glip-t-a, glip-l; a repository USER/MODEL of the Hugging Face "
        "hub; or a folder of save_pretrained (default: %(default)s)",
    )
    source.add_argument("--config", metavar="FILE", help="a config instead of a named model")
    add = group.add_argument
    add("--weights", metavar="FILE", help="weights instead of those of the model or config")
    add("--device", help="cpu, cuda, cuda:1, ... (default: CUDA if there is one)")
    add("--precision", choices=PRECISIONS, help="of inference (default: the config's)")
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides, last on the command line",
    )


def build_predictor(args: argparse.Namespace) -> Predictor:
    """The predictor of the arguments of :func:`add_model_arguments`."""
    import torch

    from glipv2_d2 import Predictor

    # Set, because a config with CUDA where there is none is a warning.
    device = [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
    opts = [*device, *args.opts, *(["TEST.PRECISION", args.precision] if args.precision else [])]
    if args.config is None and is_repository(args.model):
        if args.weights is not None:
            raise ValueError(f"--weights {args.weights} with --model {args.model}: use --config")
        return Predictor.from_pretrained(args.model, device=args.device, opts=opts)
    config = args.model if args.config is None else Path(args.config)
    return Predictor(config, args.weights, device=args.device, opts=opts)


def model_name(args: argparse.Namespace) -> str:
    """The model in results: its name or files, and what else changes its predictions."""
    name = args.model if args.config is None else args.config
    return " ".join(filter(None, [name, args.weights, args.precision, *args.opts]))


def is_repository(model: str) -> bool:
    return "/" in model or Path(model).is_dir()


@contextlib.contextmanager
def log_to_file(folder: Path) -> Iterator[Path]:
    """Log to ``log.txt`` in a folder, its path; the terminal shows warnings only."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    # Of Detectron2's layers, about tracing.
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (file, terminal):
        root.addHandler(handler)
    try:
        yield path
    finally:
        root.setLevel(level)
        for handler in (file, terminal):
            root.removeHandler(handler)
        file.close()
