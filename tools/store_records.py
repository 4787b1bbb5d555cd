#!/usr/bin/env python
"""Build the record stores of a config's training datasets ahead of the training.

    python tools/store_records.py --config-file configs/... [KEY VALUE ...]

Training with DATALOADER.RECORD_STORE True builds missing stores itself, while its GPUs wait. The
stores depend on the files of DATASETS.TRAIN, on the settings of prompts and on the version
of this project; those that exist are kept.

Exit status: 0 all are built, 2 the command failed.
"""

from __future__ import annotations

import argparse
import sys

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from glipv2_d2.command_line import escape_unprintable_output, report_failure
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.stored_datasets import open_stores
from glipv2_d2.engine.setup import load_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    escape_unprintable_output()
    setup_logger(name="glipv2_d2")
    try:
        cfg = load_config(args.config_file, args.opts)
        register_custom(cfg.DATASETS.CUSTOM)
        stores = open_stores(cfg)
    except Exception as error:
        return report_failure(error)
    rows = [(name, len(store), store.folder) for name, store in stores.items()]
    print(tabulate(rows, headers=("dataset", "records", "store")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
