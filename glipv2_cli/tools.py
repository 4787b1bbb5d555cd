"""Subcommands that run a script of ``tools/``, with the same arguments for the model in each.

A wheel has the scripts as ``glipv2_cli/_tools``.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glipv2_cli.arguments import add_model_arguments

FAILED = 2

MODEL_HELP = """\
model arguments of every glipv2 command (they replace --config-file and the like below):
  --model NAME, --config FILE, --weights FILE, --device, --precision, --opts KEY VALUE ...

example: glipv2 train --model glipv2-mini --num-gpus 2 SOLVER.MAX_ITER 100 OUTPUT_DIR output/mine
exit codes: 0 done, 2 failed (the last line has the reason), 130 ended by Ctrl-C
"""


@dataclass(frozen=True)
class Script:
    """A script, and how it takes a model. Config overrides are its last positional arguments.

    Attributes:
        file: in ``tools/``.
    """

    file: str


SCRIPTS = {
    "train": Script("train_net.py"),
}


def run(command: str, argv: Sequence[str]) -> int:
    """Run the script of a subcommand; return its exit code."""
    script = SCRIPTS[command]
    if {"-h", "--help"} & set(argv):
        print(MODEL_HELP)
        sys.argv[1:] = argv
    else:
        sys.argv[1:] = translate(argv)
    try:
        runpy.run_path(str(directory() / script.file), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return FAILED
        return stop.code or 0
    return 0


def directory() -> Path:
    """The scripts: a part of the package in a wheel, ``tools/`` in a checkout."""
    package = Path(__file__).parent
    installed = package / "_tools"
    return installed if installed.is_dir() else package.parent / "tools"


def translate(argv: Sequence[str]) -> list[str]:
    """The arguments of a script for those of a subcommand.

    Raises:
        FileNotFoundError, ValueError: the model is unknown, or its weights cannot be found.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_model_arguments(parser, default=None)
    args, rest = parser.parse_known_args(list(argv))
    opts, first = list(args.opts), []
    for value, key in ((args.device, "MODEL.DEVICE"), (args.precision, "TEST.PRECISION")):
        if value is not None:
            opts += [key, value]
    is_given = args.model is not None or args.config is not None or args.weights is not None
    if is_given:
        config, weights = _model_files(args)
        first = ["--config-file", config]
        if weights:
            opts = ["MODEL.WEIGHTS", weights, *opts]
    # First, as what follows may be config overrides to the end.
    return [*first, *rest, *opts]


def _model_files(args: argparse.Namespace) -> tuple[str, str]:
    """The config and weights files of the arguments of :func:`add_model_arguments`."""
    from glipv2_cli.arguments import DEFAULT_MODEL, model_files

    if args.config is None and args.model is None:
        args = argparse.Namespace(**{**vars(args), "model": DEFAULT_MODEL})
    return model_files(args)
