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

from glipv2_cli.arguments import add_model_arguments, is_repository

MODEL_HELP = """\
model arguments of every glipv2 command (they replace --config-file and the like above):
  --model NAME, --config FILE, --weights FILE, --device, --precision, --opts KEY VALUE ...
"""


@dataclass(frozen=True)
class Script:
    """A script, and how it takes a model.

    Attributes:
        file: in ``tools/``.
        config: the option of the config; "" if it is the first positional argument.
        weights: the option of the weights; "": the second positional argument; None: a config key.
        opts: the option before config overrides; "": they are the last positional arguments.
        default_model: whether it runs with the default model if none is given.
        own_options: of --device and --precision those that the script has itself.
        takes_model: whether it takes a model at all.
        has_subcommands: whether the first argument is a subcommand.
    """

    file: str
    config: str = "--config-file"
    weights: str | None = None
    opts: str = "--opts"
    default_model: bool = False
    own_options: tuple[str, ...] = ()
    takes_model: bool = True
    has_subcommands: bool = False


SCRIPTS = {
    "finetune": Script("finetune.py", weights="--weights", opts="", default_model=True),
    "train": Script("train_net.py", opts=""),
    "evaluate": Script("evaluate_all.py", config="", weights="", default_model=True),
    "check-data": Script("check_dataset.py"),
    "check-names": Script("check_names.py", default_model=True, has_subcommands=True),
    "convert": Script("convert_glip_weights.py", takes_model=False),
    "benchmark": Script("benchmark.py", own_options=("device", "precision")),
}


def run(command: str, argv: Sequence[str]) -> int:
    """Run the script of a subcommand; return its exit code."""
    script = SCRIPTS[command]
    arguments = list(argv)
    if script.takes_model:
        if {"-h", "--help"} & set(arguments):
            print(MODEL_HELP)
        else:
            arguments = translate(script, arguments)
    sys.argv[1:] = arguments
    try:
        runpy.run_path(str(directory() / script.file), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def directory() -> Path:
    """The scripts: a part of the package in a wheel, ``tools/`` in a checkout."""
    package = Path(__file__).parent
    installed = package / "_tools"
    return installed if installed.is_dir() else package.parent / "tools"


def translate(script: Script, argv: Sequence[str]) -> list[str]:
    """The arguments of a script for those of a subcommand.

    Raises:
        FileNotFoundError, ValueError: the model is unknown, or its weights cannot be found.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_model_arguments(parser)
    parser.set_defaults(model=None)
    args, rest = parser.parse_known_args(list(argv))
    opts, first = list(args.opts), []
    for name, key in (("device", "MODEL.DEVICE"), ("precision", "TEST.PRECISION")):
        value = getattr(args, name)
        if value is not None and name in script.own_options:
            first += [f"--{name}", value]
        elif value is not None:
            opts += [key, value]
    is_given = args.model is not None or args.config is not None or args.weights is not None
    if is_given or (script.default_model and script.config not in rest):
        config, weights = _model_files(args)
        if weights is not None and script.weights is None:
            opts = ["MODEL.WEIGHTS", weights, *opts]
            weights = None
        model = [(script.config, config), (script.weights, weights)]
        first += [part for option, file in model if file for part in (option, file) if part]
    # First, as what follows may be config overrides to the end.
    start = 1 if script.has_subcommands else 0
    return [
        *rest[:start],
        *first,
        *rest[start:],
        *([script.opts] if opts and script.opts else []),
        *opts,
    ]


def _model_files(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """The config and weights files of the arguments of :func:`add_model_arguments`."""
    if args.config is not None:
        return args.config, args.weights
    from glipv2_cli.arguments import DEFAULT_MODEL
    from glipv2_d2.config import named_config_file
    from glipv2_d2.hub import pretrained_files
    from glipv2_d2.model_zoo import model_files

    model = args.model or DEFAULT_MODEL
    if args.weights is not None and not is_repository(model):
        return str(named_config_file(model)), args.weights
    files = pretrained_files(model) if is_repository(model) else model_files(model)
    weights = args.weights or (str(files.weights) if files.weights is not None else None)
    return str(files.config), weights
