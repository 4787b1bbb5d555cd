#!/usr/bin/env python
"""Train or evaluate the model of a config.

python tools/train_net.py --config-file configs/... [--resume | --eval-only] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.trainer import Trainer

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def setup(args: argparse.Namespace) -> CfgNode:
    """The config, with logging and random seeds set up as it says."""
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    # Detectron2 sets up its own loggers only.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="glipv2_d2")
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Results of ``MODEL.WEIGHTS``, or with ``resume`` of the last checkpoint."""
    model = Trainer.build_model(cfg)
    checkpointer = GLIPv2Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    if arguments.num_gpus > max(1, torch.cuda.device_count()):
        raise ValueError(
            f"--num-gpus is {arguments.num_gpus}, this machine has {torch.cuda.device_count()}"
        )
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
