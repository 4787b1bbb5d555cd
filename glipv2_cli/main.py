"""The command ``glipv2``: one subcommand per task.

The library is imported when a subcommand runs.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

EXIT_CODES = """\
exit codes:
  0    done
  1    done in part, or something was found: some inputs were skipped, some results are missing, or
       the data have defects; COMMAND --help has the meaning for a command
  2    failed: wrong arguments, a missing file or package; the last line has the reason
  130  ended by Ctrl-C"""

FAILED = 2
INTERRUPTED = 130


COMMANDS = {
    "predict": "boxes, answers or captions for images and videos",
    "finetune": "fine-tune a model on your data, with a report",
    "train": "train or evaluate the model of a config, with Detectron2's arguments",
    "evaluate": "evaluate a model on the available benchmarks, in one table",
    "label": "label many images: boxes of class names, or of the phrases of captions",
    "check-data": "find defects in a dataset",
    "check-names": "check class names on your images; thresholds per name",
    "convert": "convert a GLIP checkpoint, or back",
    "export": "a model for other runtimes: ONNX or TorchScript",
    "app": "a web page to try a model",
    "serve": "a model as a web service",
    "benchmark": "time each stage of a model",
    "setup-detectron2": "install Detectron2 without a compiler",
}
"""Subcommand -> what it does."""

MODULES = {
    "predict": "predict",
    "finetune": "finetune",
    "train": "train",
    "label": "label",
    "evaluate": "evaluate",
    "check-data": "check_data",
    "check-names": "check_names",
    "convert": "convert",
    "export": "export",
    "app": "app",
    "serve": "serve",
    "benchmark": "benchmark",
}
"""Subcommand -> its module, with a function ``main(argv)`` that returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``glipv2 COMMAND ...``; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else FAILED
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(f"glipv2_d2 {version('glipv2_d2')}")
        return 0
    if name not in COMMANDS:
        return fail(_unknown(name))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Of names that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Figures are files. A notebook's kernel sets a backend that another environment may lack.
    os.environ["MPLBACKEND"] = "agg"
    try:
        return _run(name, rest)
    except (OSError, ValueError) as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        return fail(f"{error}{_remedy(error)}")
    except KeyboardInterrupt:
        print("ended by Ctrl-C", file=sys.stderr)
        return INTERRUPTED
    # Python's own exit code for any other error is 1.
    except Exception as error:
        traceback.print_exc()
        return fail(str(error) or type(error).__name__)


def _run(name: str, argv: list[str]) -> int:
    if not sys.warnoptions:
        # For the developers of the libraries.
        warnings.filterwarnings("ignore", category=FutureWarning)
        # Of Detectron2's layers, about tracing.
        logging.getLogger("torch.fx").setLevel(logging.ERROR)
    # Parsers show it as the name of the program.
    sys.argv[0] = f"glipv2 {name}"
    if name in MODULES:
        from importlib import import_module

        code: int = import_module(f"glipv2_cli.{MODULES[name]}").main(argv)
        return code
    assert name == "setup-detectron2", name
    from glipv2_cli import get_detectron2

    try:
        get_detectron2.main(argv)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            return fail(stop.code)
        raise
    return 0


def usage() -> str:
    lines = ["usage: glipv2 COMMAND [OPTION ...]", ""]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    lines += ["", "glipv2 COMMAND --help lists the options of a command.", "", EXIT_CODES]
    return "\n".join(lines)


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return FAILED


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else "glipv2 --help lists the commands"
    return f"unknown command {name!r}; {hint}"


def _remedy(error: ModuleNotFoundError) -> str:
    """How to install the package that is missing, unless the message has it."""
    if error.name is None or "install" in str(error):
        return ""
    if error.name.partition(".")[0] == "detectron2":
        return ". Install it with: glipv2 setup-detectron2"
    return f". Install it with: pip install {error.name.partition('.')[0]}"


if __name__ == "__main__":
    sys.exit(main())
