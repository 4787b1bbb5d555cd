#!/usr/bin/env python
"""Convert a GLIP checkpoint to one of this project, or back.

MODEL.WEIGHTS accepts GLIP files directly. A converted file needs no renaming when it is loaded, and
has no optimizer state.

    tools/convert_glip_weights.py glip_tiny_model_o365_goldg_cc_sbu.pth glip_swin_t.pth
    tools/convert_glip_weights.py --to-glip output/model_final.pth for_glip.pth
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from torch import Tensor

from glipv2_d2.checkpoint import (
    Layout,
    detect_layout,
    from_glip,
    read_checkpoint,
    save_state,
    to_glip,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", type=Path, help="input file")
    parser.add_argument("output", metavar="OUT", type=Path, help="output file")
    parser.add_argument(
        "--to-glip", action="store_true", help="convert from this project's names to GLIP's"
    )
    args = parser.parse_args(arguments)
    try:
        convert(args.input, args.output, to_glip_names=args.to_glip)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def convert(source: Path, target: Path, *, to_glip_names: bool) -> None:
    """Write ``source`` with renamed keys to ``target``, and print how many keys of each kind."""
    if target.exists() and target.samefile(source):
        raise ValueError(f"'{target}' is the input itself; choose another output file.")
    state_dict = read_checkpoint(source)["model"]
    expected = Layout.NATIVE if to_glip_names else Layout.GLIP
    if (found := detect_layout(state_dict)) is not expected:
        raise ValueError(
            f"'{source}' has names of the layout '{found.value}', not of '{expected.value}'. "
            "Only GLIP files are converted; --to-glip selects the direction."
        )
    converted, rows = _to_glip(state_dict) if to_glip_names else _from_glip(state_dict)
    save_state(converted, target)
    size = target.stat().st_size / 2**20
    print(tabulate(rows, headers=("keys", "outcome"), tablefmt="simple"))
    print(f"Wrote {len(converted)} tensors ({size:.1f} MiB) to {target.resolve()}")


def _from_glip(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    converted, account = from_glip(state_dict)
    if account.unknown:
        raise ValueError(
            f"{len(account.unknown)} keys are unknown, and nothing was written: "
            + ", ".join(account.unknown)
        )
    reasons = Counter(account.ignored.values())
    return converted, [
        (len(account.loaded), "loaded"),
        (len(account.recomputed), "recomputed by the model"),
        *((count, f"ignored: {reason}") for reason, count in sorted(reasons.items())),
    ]


def _to_glip(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    converted = to_glip(state_dict)
    return converted, [
        (len(converted), "renamed"),
        (len(state_dict) - len(converted), "skipped: buffers that GLIP creates"),
    ]


if __name__ == "__main__":
    main()
