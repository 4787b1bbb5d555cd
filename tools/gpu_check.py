#!/usr/bin/env python
"""Check the project on a GPU within minutes: tests, times, memory, comparison with Grounding DINO.

    python tools/gpu_check.py --prepare wheels/              # here: wheels that machine lacks
    python tools/gpu_check.py --wheels wheels/ --output DIR  # there: from a bare checkout
    python tools/gpu_check.py --device cpu --quick           # a dry run with a tiny model

Each part runs in a process of its own with a limit of time; --seconds limits all together. Results
are in gpu_check.json and gpu_check.md of the output folder, which are written anew after each part;
gpu_check.log has what the parts print. A row is done, failed (with the error) or not run (with the
reason). The wheels are installed to a temporary folder: the machine's packages do not change.

exit codes:
  0  no row failed
  1  a row failed
  2  the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# As pytest's pythonpath in pyproject.toml; parts use the tiny model of the tests.
PATHS = (ROOT, ROOT / "tests", ROOT / "tools", ROOT / "projects" / "GLIPv2Mini")
sys.path += [str(path) for path in PATHS if str(path) not in sys.path]

from gpu_check_parts import PARTS, Part, Settings  # noqa: E402
from gpu_check_wheels import install_missing, prepare  # noqa: E402

DEFAULT_SECONDS = 480.0
# Kept for the report, and needed at least for a part to be worth its start.
_RESERVE_S, _MIN_PART_S = 5.0, 10.0
_PRELOADED = ["torch", "detectron2.engine", "glipv2_cli.benchmark"]

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
Row = dict[str, Any]


def make_row(
    part: str, name: str, status: str, value: Any = None, unit: str = "", note: str = ""
) -> Row:
    return {
        "part": part,
        "name": name,
        "status": status,
        "value": value,
        "unit": unit,
        "note": note,
    }


def run_part(part: Part, settings: Settings, seconds: float, log: Path) -> list[Row]:
    """The rows of a part, which runs in another process for at most ``seconds``."""
    path = settings.folder / "rows.jsonl"
    path.write_text("")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run_in_process, args=(part, settings, path, log))
    process.start()
    process.join(seconds)
    is_late = process.is_alive()
    if is_late:
        _end(process.pid)
        process.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if is_late:
        return complete(part, rows, f"not finished within {seconds:.0f} s")
    if process.exitcode == 0:
        return complete(part, rows, "no result, see the rows before")
    if not any(row["status"] == FAILED for row in rows):
        note = f"its process ended with code {process.exitcode}"
        rows.append(make_row(part.name, part.name, FAILED, note=note))
    return complete(part, rows, "the part failed")


def complete(part: Part, rows: list[Row], reason: str) -> list[Row]:
    """``rows``, and the rows of the part that are missing, as not run."""
    found = {row["name"] for row in rows}
    missing = [name for name in part.rows if name not in found]
    return rows + [make_row(part.name, name, NOT_RUN, note=reason) for name in missing]


def _run_in_process(part: Part, settings: Settings, path: Path, log: Path) -> None:
    # A group of its own, which is ended together with the processes that the part starts.
    os.setsid()
    with log.open("ab", buffering=0) as output, path.open("a", buffering=1) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)

        def emit(name: str, value: Any, unit: str = "", *, failure: str = "") -> None:
            status = FAILED if failure else DONE
            row = make_row(part.name, name, status, value, unit, failure)
            file.write(json.dumps(row) + "\n")

        try:
            part.run(settings, emit)
        except BaseException as error:
            emit(part.name, None, failure=f"{type(error).__name__}: {error}")
            raise


def _end(pid: int | None) -> None:
    assert pid is not None
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(pid, signal.SIGKILL)


def reason_not_to_run(part: Part, settings: Settings, seconds: float) -> str:
    """Why a part does not run with so many seconds left; "" if it runs."""
    if part.needs_gpu and settings.device == "cpu":
        return "needs a GPU"
    if settings.quick and not part.is_quick:
        return "not part of a quick run"
    if seconds < _MIN_PART_S:
        return f"{max(seconds, 0):.0f} s are left"
    return ""


def check(
    settings: Settings, output: Path, *, seconds: float, start: float, parts: Sequence[Part] = PARTS
) -> list[Row]:
    """Run the parts in order and write the reports after each.

    Args:
        seconds: for everything, from ``start`` (``time.monotonic()``) on.
    """
    log = output / "gpu_check.log"
    log.unlink(missing_ok=True)
    rows: list[Row] = []
    for part in parts:
        left = seconds - (time.monotonic() - start) - _RESERVE_S
        reason = reason_not_to_run(part, settings, left)
        if reason:
            rows += complete(part, [], reason)
        else:
            rows += run_part(part, settings, min(part.budget_s, left), log)
        report = {
            "device": settings.device,
            "quick": settings.quick,
            "seconds": round(time.monotonic() - start, 1),
            "limit_seconds": seconds,
            "rows": rows,
        }
        write(output / "gpu_check.json", json.dumps(report, indent=1) + "\n")
        write(output / "gpu_check.md", markdown(rows))
        elapsed = f"{time.monotonic() - start:.0f} s since the start"
        print(f"{part.name}: {reason or elapsed}", flush=True)
    return rows


def write(path: Path, text: str) -> None:
    """Write atomically; the library's function needs Detectron2, which may be missing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown(rows: Sequence[Row]) -> str:
    """A table with a line per row."""
    lines = ["| part | | value | |", "|---|---|---|---|"]
    for row in rows:
        value = row["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
        if row["status"] != DONE:
            shown = row["status"]
        cells = (row["part"], row["name"], f"{shown} {row['unit']}".strip(), row["note"])
        lines.append(f"| {' | '.join(_cell(x) for x in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


def put_on_path(wheels: Path | None, folder: Path) -> None:
    """Install missing wheels to ``folder``, for this process and those that it starts.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as :func:`install_missing`.
        ValueError: Detectron2 is neither installed nor among the wheels.
    """
    added = [str(path) for path in PATHS]
    if wheels is not None:
        print("installed for this run:", ", ".join(install_missing(wheels, folder)) or "nothing")
        added.insert(0, str(folder))
        # After the machine's packages: what is there is used.
        sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*added, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    importlib.invalidate_caches()
    if importlib.util.find_spec("detectron2") is None:
        raise ValueError("detectron2 is not installed; pass a folder of --prepare as --wheels")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--quick", action="store_true", help="the tests' tiny model, and a part of the tests")
    add("--output", type=Path, default=Path("output/gpu_check"), metavar="DIR")
    add("--seconds", type=float, default=DEFAULT_SECONDS, metavar="N", help="limit (default: 480)")
    add("--wheels", type=Path, metavar="DIR", help="wheels of packages that may be missing here")
    add("--prepare", type=Path, metavar="DIR", help="only download these wheels to this folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    args = get_parser().parse_args(argv)
    try:
        if args.prepare is not None:
            for wheel in prepare(args.prepare):
                print(wheel)
            return 0
        if not args.seconds > 0:
            raise ValueError(f"--seconds is {args.seconds}; it must be a positive number")
        args.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu_check_") as name:
            folder = Path(name)
            put_on_path(args.wheels, folder / "packages")
            settings = Settings(args.device, args.quick, folder)
            output = args.output.resolve()
            rows = check(settings, output, seconds=args.seconds, start=start)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = {x: sum(row["status"] == x for row in rows) for x in (DONE, FAILED, NOT_RUN)}
    print(", ".join(f"{number} {status}" for status, number in counts.items()))
    print(f"results in {args.output}")
    return 1 if counts[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
