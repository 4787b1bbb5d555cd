#!/usr/bin/env python
"""Train or evaluate the model of a config.

python tools/train_net.py --config-file configs/... [--resume | --eval-only] [KEY VALUE ...]

On several GPUs: --num-gpus 8, or torchrun --nproc-per-node 8 tools/train_net.py ..., on several
machines with torchrun's --nnodes 4 --rdzv-backend c10d --rdzv-endpoint HOST:PORT on each of them.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.distributed import launch
from glipv2_d2.engine.train.output_lock import output_lock
from glipv2_d2.engine.train.reporting import evaluate_weights
from glipv2_d2.engine.train.trainer import Trainer

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up logging and random seeds."""
    default_setup(cfg, args)
    # Detectron2 sets up its own loggers only.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="glipv2_d2")


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = load_config(args.config_file, args.opts)
    if args.eval_only:
        setup(cfg, args)
        return evaluate_weights(cfg, resume=args.resume)
    # Before the first file is written.
    with output_lock(cfg.OUTPUT_DIR):
        setup(cfg, args)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    launch(main, default_argument_parser().parse_args())
