#!/usr/bin/env python
"""Train or evaluate the model of a Python config (LazyConfig) with Detectron2's own parts.

    python tools/lazyconfig_train_net.py --config-file configs/lazy/glip_swin_t.py \
        train.output_dir=output/glip_t 'settings.opts=[SOLVER.IMS_PER_BATCH,8]'

Further arguments override nodes of the config. tools/train_net.py has gradient accumulation, moving
averages and exact resuming, too.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from glipv2_d2.engine.train.distributed import launch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def evaluate(cfg: Any, model: Any) -> dict[str, Any]:
    """The results on the test set of the config."""
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: Any, *, resume: bool) -> None:
    """Train with Detectron2's trainer and hooks; write checkpoints and metrics."""
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, broadcast_buffers=False)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    is_resumed = resume and checkpointer.has_checkpoint()
    start = trainer.iter + 1 if is_resumed else 0
    schedule = instantiate(cfg.lr_multiplier)
    registered = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=schedule),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        if comm.is_main_process()
        else None,
        hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
        hooks.PeriodicWriter(
            default_writers(cfg.train.output_dir, cfg.train.max_iter), cfg.train.log_period
        )
        if comm.is_main_process()
        else None,
    ]
    trainer.register_hooks(registered)
    trainer.train(start, cfg.train.max_iter)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    if not args.eval_only:
        train(cfg, resume=args.resume)
        return None
    model = instantiate(cfg.model).to(cfg.train.device)
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    return evaluate(cfg, model)


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
