#!/usr/bin/env python
"""Check datasets for defects that matter in training.

    python tools/check_dataset.py --dataset NAME [NAME ...] [--json FILE] [--no-images]
    python tools/check_dataset.py --config-file configs/... [--opts KEY VALUE ...]

Without --dataset, the config's DATASETS.TRAIN and DATASETS.TEST are checked. The config's
DATASETS.CUSTOM are registered, and its prompt limits apply.

Exit status: 0 no defects, 1 defects, 2 the check failed.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
from glipv2_d2.data.check_report import to_json, to_table
from glipv2_d2.data.checks import DatasetReport, PromptLimits, check_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.setup import load_config
from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.text.tokenizer import Tokenizer

FOUND_DEFECTS = 1
NOT_CHECKED = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE")
    add("--dataset", nargs="+", default=[], metavar="NAME")
    add("--json", type=Path, metavar="FILE", help="write the report to this file")
    add("--no-images", action="store_true", help="check the annotations only, not the image files")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def dataset_names(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The datasets to check, each once: ``names``, or those of the config.

    Raises:
        ValueError: no dataset is given, or one is not registered.
    """
    names = list(dict.fromkeys(names or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ValueError("no dataset is given: use --dataset or a config with DATASETS.TRAIN")
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"dataset {name!r} is not registered{hint}")
    return names


def run(args: argparse.Namespace) -> list[DatasetReport]:
    cfg = load_config(args.config_file, args.opts)
    register_custom(cfg.DATASETS.CUSTOM)
    prompt = cfg.MODEL.PROMPT
    limits = PromptLimits(
        Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, prompt.MAX_TOKENS),
        prompt.SEPARATOR,
        prompt.MAX_CLASSES,
    )
    progress = functools.partial(tqdm, leave=False)
    reports = []
    for name in dataset_names(cfg, args.dataset):
        report = check_dataset(
            name,
            limits,
            open_images=not args.no_images,
            progress=progress,
            max_image_size=cfg.INPUT.MAX_SIZE_TRAIN,
        )
        print(to_table(report), end="\n\n")
        reports.append(report)
    if args.json is not None:
        with atomic_open(args.json) as file:
            file.write(dump_json([to_json(r) for r in reports], indent=1).encode())
    return reports


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        reports = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_CHECKED
    # Python's own exit status for any other error is that of defects.
    except Exception:
        traceback.print_exc()
        return NOT_CHECKED
    num_defects = sum(report.num_defects for report in reports)
    print(f"{num_defects} defects in {len(reports)} datasets")
    return FOUND_DEFECTS if num_defects else 0


if __name__ == "__main__":
    sys.exit(main())
