"""The command ``glipv2``: one subcommand per task.

The library is imported when a subcommand runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

EXIT_CODES = """\
exit codes:
  0  done
  1  done in part: some inputs were skipped or some results are missing
  2  failed: wrong arguments, a missing file or package; the last line has the reason"""

FAILED = 2
INTERRUPTED = 130


COMMANDS = {
    "predict": "boxes, answers or captions for images and videos",
    "finetune": "fine-tune a model on your data, with a report",
    "train": "train the model of a config, with Detectron2's arguments",
    "evaluate": "evaluate a model on the available benchmarks, in one table",
    "label": "label many images: boxes of class names, or of the phrases of captions",
    "check-data": "find defects in a dataset",
    "check-names": "check class names on your images; thresholds per name",
    "convert": "convert a GLIP checkpoint, or back",
    "benchmark": "time each stage of a model",
    "setup-detectron2": "install Detectron2 without a compiler",
}
"""Subcommand -> what it does."""


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
    try:
        return _run(name, rest)
    except (OSError, ValueError) as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        return fail(f"{error}{_remedy(error)}")
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(name: str, argv: list[str]) -> int:
    if not sys.warnoptions:
        # For the developers of the libraries.
        warnings.filterwarnings("ignore", category=FutureWarning)
    # Parsers show it as the name of the program.
    sys.argv[0] = f"glipv2 {name}"
    if name == "predict":
        from glipv2_cli import predict

        return predict.main(argv)
    if name == "label":
        from glipv2_cli import label

        return label.main(argv)
    if name == "setup-detectron2":
        from glipv2_cli import get_detectron2

        get_detectron2.main(argv)
        return 0
    from glipv2_cli import tools

    return tools.run(name, argv)


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
