"""Convert a GLIP checkpoint to one of this project, or back.

--weights and MODEL.WEIGHTS accept GLIP files directly. A converted file needs no renaming when it
is loaded, and has no optimizer state.

Examples:
  glipv2 convert glip_tiny_model_o365_goldg_cc_sbu.pth glip_swin_t.pth
  glipv2 convert --to-glip output/model_final.pth for_glip.pth

exit codes:
  0  the file was written
  2  the command failed, and nothing was written: the last line has the reason
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", type=Path, help="input file")
    parser.add_argument("output", metavar="OUT", type=Path, help="output file")
    parser.add_argument(
        "--to-glip", action="store_true", help="convert from this project's names to GLIP's"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    from tabulate import tabulate

    from glipv2_d2.checkpoint.conversion import convert

    converted, rows = convert(args.input, args.output, to_glip_names=args.to_glip)
    size = args.output.stat().st_size / 2**20
    print(tabulate(rows, headers=("keys", "outcome"), tablefmt="simple"))
    print(f"Wrote {len(converted)} tensors ({size:.1f} MiB) to {args.output.resolve()}")
    return 0
