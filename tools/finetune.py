#!/usr/bin/env python
"""Fine-tune a model on a folder in COCO's format: writes a small delta file and a report.

python tools/finetune.py --data my_data --policy full
python tools/finetune.py --data my_data --weights glip_tiny_model_o365_goldg_cc_sbu.pth \
    --config-file configs/glip/glip_swin_t.yaml --policy prompt --shots 10

The folder has train/ and valid/ with _annotations.coco.json, as exported by Roboflow, or
annotations/*.json and images/. Without --weights the small model of this project is fine-tuned. The
output folder then has delta.pth, the changed weights:

    Predictor(config, weights, delta="output/finetune/delta.pth")
    tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS ... MODEL.TUNING.DELTA ...
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import torch
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from glipv2_d2.engine.finetune.few_shot import SEEDS, SHOTS
from glipv2_d2.engine.finetune.job import FinetuneArguments, FinetuneJob, prepare
from glipv2_d2.engine.finetune.policies import policy_names
from glipv2_d2.engine.finetune.tuning import DELTA_FILE
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.train.output_lock import output_lock

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "projects" / "GLIPv2Mini"
MINI_CONFIG = MINI / "configs" / "glipv2_mini.yaml"
MINI_WEIGHTS = MINI / "glipv2_mini" / "assets" / "glipv2_mini.pth"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder in COCO's format")
    add("--weights", type=Path, default=MINI_WEIGHTS, help="of the base model")
    add("--config-file", default=str(MINI_CONFIG), help="of the base model")
    add("--policy", choices=policy_names(), default="full", help="which parameters are trained")
    add(
        "--shots",
        type=int,
        choices=SHOTS,
        help="training images per class, chosen by --seed (default: all images)",
    )
    add("--seed", type=int, default=SEEDS[0], help=f"the published few-shot runs use {SEEDS}")
    add("--output", type=Path, default=Path("output/finetune"))
    add(
        "--base-sets",
        type=lambda text: [name for name in text.split(",") if name],
        help='datasets to measure forgetting, "a,b"; default DATASETS.TEST of the config, "": none',
    )
    add("--resume", action="store_true", help="continue an interrupted training")
    add(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config overrides, with precedence over the recipe",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with contextlib.ExitStack() as stack:
        try:
            # Before the first file is written.
            stack.enter_context(output_lock(args.output))
            job = prepare(FinetuneArguments(**vars(args)))
        except (FileNotFoundError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        run(job, args)
    return 0


def run(job: FinetuneJob, args: argparse.Namespace) -> None:
    """Train, evaluate, and write the report."""
    default_setup(job.cfg, args)
    # Detectron2 sets up its own loggers only.
    setup_logger(job.cfg.OUTPUT_DIR, name="glipv2_d2")
    report = job.run()
    report.write(args.output)
    print(report.text())
    print(f"report.md, report.json and {DELTA_FILE} are in {args.output}")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    sys.exit(main())
