"""Check datasets for defects that matter in training.

Examples:
  glipv2 check-data --dataset coco_2017_val --json report.json
  glipv2 check-data --config my.yaml --no-images      # its TRAIN and TEST, quickly

Without --dataset, the config's DATASETS.TRAIN and DATASETS.TEST are checked. The config's
DATASETS.CUSTOM are registered, and its prompt limits apply.

exit codes:
  0  no defects
  1  defects, see the tables
  2  the check failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_log_argument,
    add_model_arguments,
    log_to_file,
    model_config,
)
from glipv2_cli.progress import ProgressBar

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from glipv2_d2.data.checks import DatasetReport


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", nargs="+", default=[], metavar="NAME", help="registered datasets")
    add("--json", type=Path, metavar="FILE", help="write the report to this file")
    add("--no-images", action="store_true", help="check the annotations only, not the image files")
    add_log_argument(parser, "check-data")
    add_model_arguments(parser, default=None, runs=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    with log_to_file(args.log, option="--log"):
        reports = run(args)
    num_defects = sum(report.num_defects for report in reports)
    print(f"{num_defects} defects in {len(reports)} datasets")
    return 1 if num_defects else 0


def run(args: argparse.Namespace) -> list[DatasetReport]:
    from glipv2_d2.command_line import check_output_file
    from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
    from glipv2_d2.data.check_report import to_json, to_table
    from glipv2_d2.data.checks import PromptLimits, check_dataset
    from glipv2_d2.file_writing import atomic_write, dump_json
    from glipv2_d2.text.tokenizer import Tokenizer

    check_output_file(args.json, "--json")
    cfg = model_config(args)
    prompt = cfg.MODEL.PROMPT
    limits = PromptLimits(
        Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, prompt.MAX_TOKENS),
        prompt.SEPARATOR,
        prompt.MAX_CLASSES,
    )
    reports = []
    for name in dataset_names(cfg, args.dataset):
        report = check_dataset(
            name,
            limits,
            open_images=not args.no_images,
            progress=ProgressBar,
            max_image_size=cfg.INPUT.MAX_SIZE_TRAIN,
        )
        print(to_table(report), end="\n\n")
        reports.append(report)
    if args.json is not None:
        atomic_write(args.json, dump_json([to_json(r) for r in reports], indent=1))
    return reports


def dataset_names(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The datasets to check, each once: ``names``, or those of the config.

    Raises:
        ValueError: no dataset is given, or one is not registered.
    """
    from detectron2.data import DatasetCatalog

    names = list(dict.fromkeys(names or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ValueError("no dataset is given: use --dataset or a config with DATASETS.TRAIN")
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"dataset {name!r} is not registered{hint}")
    return names
