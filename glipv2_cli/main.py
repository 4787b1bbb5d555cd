"""The command ``glipv2``: one subcommand per task, each in a module of its own.

The module of a subcommand, and with it the library, is imported when the subcommand runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

EXIT_CODES = """\
exit codes:
  0  done
  1  done in part: some inputs were skipped or some results are missing
  2  failed: wrong arguments, a missing file or package; the last line has the reason"""

FAILED = 2
INTERRUPTED = 130


class Command(NamedTuple):
    """A subcommand: ``module.main(argv)`` returns the exit code."""

    summary: str
    module: str


COMMANDS = {
    "setup-detectron2": Command(
        "install Detectron2 without a compiler", "glipv2_cli.get_detectron2"
    ),
}


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
    # The parsers of the subcommands show it as their name.
    sys.argv[0] = f"glipv2 {name}"
    try:
        return import_module(COMMANDS[name].module).main(rest) or 0
    except ModuleNotFoundError as error:
        return fail(f"{error}{_remedy(error)}")
    except KeyboardInterrupt:
        return INTERRUPTED


def usage() -> str:
    lines = ["usage: glipv2 COMMAND [OPTION ...]", ""]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
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
