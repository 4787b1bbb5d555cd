"""Arguments that subcommands share, and the model that they select."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from glipv2_d2 import Predictor
    from glipv2_d2.evaluation.thresholds import ScoreThresholds

DEFAULT_MODEL = "glipv2-mini"
PRECISIONS = ("fp32", "bf16", "fp16")


def add_model_arguments(
    parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_MODEL, runs: bool = True
) -> None:
    """Add the arguments that select a model.

    Args:
        default: the model without ``--model`` and ``--config``.
        runs: whether the command runs the model, and does not only read its config.
    """
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help="glipv2-mini, glip-t, glip-t-a, glip-l; a repository USER/MODEL of the Hugging Face "
        "hub; a folder of finetune or save_pretrained; the file of --export "
        f"(default: {default or 'none'})",
    )
    source.add_argument("--config", metavar="FILE", help="a config instead of a named model")
    add = group.add_argument
    if runs:
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
    if not runs:
        # No weights: those of a named model are not downloaded.
        parser.set_defaults(weights="", device=None, precision=None)


def config_overrides(args: argparse.Namespace) -> list[str]:
    """``--opts`` with the overrides of ``--device`` and ``--precision``, which have precedence."""
    import torch

    opts = list(args.opts)
    if args.device is not None:
        opts += ["MODEL.DEVICE", args.device]
    elif not torch.cuda.is_available():
        # Set, because a config with CUDA where there is none is a warning.
        opts = ["MODEL.DEVICE", "cpu", *opts]
    return [*opts, "TEST.PRECISION", args.precision] if args.precision else opts


def model_files(args: argparse.Namespace) -> tuple[str, str]:
    """The files of config and weights; "": the defaults, and ``MODEL.WEIGHTS`` of the config.

    Raises:
        FileNotFoundError, ValueError: the model is unknown, or its weights cannot be found.
    """
    if args.config is not None or args.model is None:
        return args.config or "", args.weights or ""
    from glipv2_d2 import hub, model_zoo
    from glipv2_d2.config import named_config_file

    if is_repository(args.model):
        files = hub.pretrained_files(args.model)
    elif args.weights is not None:
        return str(named_config_file(args.model)), args.weights
    else:
        files = model_zoo.model_files(args.model)
    return str(files.config), args.weights or str(files.weights or "")


def model_config(args: argparse.Namespace) -> CfgNode:
    """The config of the arguments of :func:`add_model_arguments`, with ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError, ValueError: see :func:`model_files` and ``load_config``.
    """
    config, weights = model_files(args)
    opts = [*config_overrides(args), *(["MODEL.WEIGHTS", weights] if weights else [])]
    return _load_config(args, config, opts)


def _load_config(args: argparse.Namespace, config: str, opts: list[str]) -> CfgNode:
    from glipv2_d2.engine.setup import load_config, load_foreign_config

    is_foreign = args.config is None and args.model is not None and is_repository(args.model)
    return (load_foreign_config if is_foreign else load_config)(config, opts)


def add_log_argument(parser: argparse.ArgumentParser, command: str) -> None:
    """Add ``--log`` to a command without an output folder."""
    parser.add_argument(
        "--log",
        type=Path,
        default=Path("output") / command,
        metavar="DIR",
        help="folder of log.txt (default: %(default)s)",
    )


def add_threshold_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="T",
        help="minimum score, 0 to 1 (default: the model's), and of single names: "
        "'0.3, cat=0.4, coffee cup=0.5'",
    )
    add("--thresholds", type=Path, metavar="FILE", help="per name, of check-names calibrate")


def class_names(args: argparse.Namespace) -> list[str] | None:
    """The names of ``--classes`` or ``--classes-file``; None without them.

    Raises:
        ValueError: the file cannot be read, or a name is empty.
    """
    from glipv2_d2.command_line import parse_class_names, read_class_names

    if args.classes_file is not None:
        return read_class_names(args.classes_file)
    return parse_class_names(args.classes) if args.classes is not None else None


def names_of_model(args: argparse.Namespace) -> list[str] | None:
    """The class names of a fine-tuned model; None for others."""
    cfg = _load_config(args, _config_file(args), config_overrides(args))
    return list(cfg.MODEL.TUNING.CLASS_NAMES) or None


def score_thresholds(args: argparse.Namespace, names: Sequence[str] | None) -> ScoreThresholds:
    """Thresholds of ``--threshold``, of ``--classes-file`` and of ``--thresholds``, in this order.

    Args:
        names: the class names; None: phrases, which are not known yet.

    Raises:
        ValueError: a threshold is malformed, or of a name that is not among the class names.
    """
    from difflib import get_close_matches

    from glipv2_d2.command_line import parse_thresholds, read_class_lines
    from glipv2_d2.evaluation.thresholds import ScoreThresholds
    from glipv2_d2.text.names import normalized_name

    default, of_option = parse_thresholds(args.threshold)
    known = None if names is None else {normalized_name(name): name for name in names}
    for name in of_option:
        if known is not None and normalized_name(name) not in known:
            close = get_close_matches(name, known.values(), n=2)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"--threshold {name}=...: {name!r} is not a class name{hint}")
    if args.thresholds is not None:
        base = ScoreThresholds.from_source(args.thresholds)
        default = base.default if default is None else default
    else:
        base = ScoreThresholds({})
    lines = read_class_lines(args.classes_file) if args.classes_file is not None else []
    of_file = {name: threshold for name, threshold in lines if threshold is not None}
    # Names are compared without case and spaces: of several spellings one remains.
    per_class = {
        normalized_name(name): (name, threshold)
        for thresholds in (base.per_class, of_file, of_option)
        for name, threshold in thresholds.items()
    }
    default = threshold_of_model(args) if default is None else default
    return ScoreThresholds(dict(per_class.values()), default)


def threshold_of_model(args: argparse.Namespace) -> float:
    """The minimum score of a box in the config of the model, which is not loaded."""
    from glipv2_d2.evaluation.thresholds import display_threshold

    return display_threshold(_load_config(args, _config_file(args), config_overrides(args)))


def _config_file(args: argparse.Namespace) -> str:
    from glipv2_d2 import hub
    from glipv2_d2.config import named_config_file

    if args.config is not None or args.model is None:
        return args.config or ""
    if is_repository(args.model):
        return str(hub.pretrained_files(args.model).config)
    return str(named_config_file(args.model))


def check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold is {threshold}; scores are from 0 to 1")


def build_predictor(args: argparse.Namespace, rank: int | None = None) -> Predictor:
    """The predictor of the arguments of :func:`add_model_arguments`.

    Args:
        rank: number of the process; of several GPUs, each process uses the next one.
    """
    import torch

    from glipv2_d2 import Predictor
    from glipv2_d2.engine.shards import device_of

    if rank is not None and torch.cuda.is_available():
        device = device_of(rank, args.device or "cuda")
        args = argparse.Namespace(**{**vars(args), "device": device})
    opts = config_overrides(args)
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
    """Whether a model is a folder, a file or a repository of the hub, and not a name."""
    return "/" in model or model.endswith(".safetensors") or Path(model).is_dir()


def _once() -> Callable[[logging.LogRecord], bool]:
    """A filter that passes each message once: several models may be loaded from one file."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_first = message not in shown
        shown.add(message)
        return is_first

    return is_new


@contextlib.contextmanager
def log_to_file(folder: Path, name: str = "log.txt", *, option: str = "--output") -> Iterator[Path]:
    """Log to a file in a folder, its path; the terminal shows warnings only, each once.

    Args:
        option: that of the folder, for the error.

    Raises:
        ValueError: the folder cannot be created or written.
    """
    from glipv2_d2.command_line import check_output_folder

    check_output_folder(folder, option)
    path = folder / name
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.addFilter(_once())
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    # A file that cannot be downloaded is an error, too.
    logging.getLogger("iopath").setLevel(logging.CRITICAL)
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


@contextlib.contextmanager
def print_to_file(path: Path) -> Iterator[None]:
    """Append what the libraries print, such as pycocotools, to a log file."""
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield
